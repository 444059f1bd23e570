"""What `hasten.load(bundle)(x)` adds to the bare engine's call, in turns within one process.

python benchmarks/overhead.py BUNDLE
"""

from __future__ import annotations

import sys
import time

import numpy as np

import hasten

ROUNDS, CALLS = 50, 200


def main() -> None:
    with hasten.load(sys.argv[1]) as fast:
        (spec,) = fast.manifest.winner.artifact.request
        x = np.zeros(spec.sizes, spec.dtype)
        session = fast._session  # the same session without the callable around it
        request = {spec.name: x}
        differences = []
        for _ in range(ROUNDS):
            medians = []
            for call in (lambda: fast(x), lambda: session.run(request)):
                times = []
                for _ in range(CALLS):
                    begin = time.perf_counter_ns()
                    call()
                    times.append(time.perf_counter_ns() - begin)
                medians.append(float(np.median(times)))
            differences.append((medians[0] - medians[1]) / 1e3)
        low, middle, high = np.quantile(differences, [0.025, 0.5, 0.975])
        print(f"load(...)(x) adds {middle:.2f} µs ({low:.2f} to {high:.2f} over {ROUNDS} rounds)")


if __name__ == "__main__":
    main()
