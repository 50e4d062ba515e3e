"""How results are shown: rich tables, text and PNG charts. Every result is data with to_json()."""

from vitc.report.charts import bench_chart, memory_chart, rates_chart
from vitc.report.graphs import graph_dot, write_graph
from vitc.report.memory import lifetimes, memory_table
from vitc.report.tables import (
    bench_table,
    compile_tables,
    doctor_tables,
    kernel_table,
    maps_table,
    summary_table,
    tune_table,
    verify_tables,
    weights_table,
)
from vitc.report.trace import write_trace

__all__ = [
    "bench_chart",
    "bench_table",
    "compile_tables",
    "doctor_tables",
    "graph_dot",
    "kernel_table",
    "lifetimes",
    "maps_table",
    "memory_chart",
    "memory_table",
    "rates_chart",
    "summary_table",
    "tune_table",
    "verify_tables",
    "weights_table",
    "write_graph",
    "write_trace",
]
