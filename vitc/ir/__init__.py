"""The intermediate representation: typed graphs, their text, their meaning."""
