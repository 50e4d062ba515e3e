"""The version of vitc: read by the package's metadata and written into every manifest."""

__version__ = "0.1.0"
