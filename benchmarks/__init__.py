"""What this library costs, beside what others cost, on the machine at hand: `python -m benchmarks run --quick`."""
