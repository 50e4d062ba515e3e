"""Benchmarks that time only what verified, beside peers in the same process."""

from vitc.bench.contenders import PEERS
from vitc.bench.results import OURS, BenchmarkRefused, BenchReport, Machine, Timing
from vitc.bench.run import bench

__all__ = ["OURS", "PEERS", "BenchReport", "BenchmarkRefused", "Machine", "Timing", "bench"]
