"""Fuzz a running service: broken bytes, then requests derived from its OpenAPI document. Ends with code 1 where anything was wrong.

python -m benchmarks.fuzz                                   # 20,000 and 10,000 requests
python -m benchmarks.fuzz --requests 500 --seed 3           # 500 of each
python -m benchmarks.fuzz --only bytes --first 4711 --requests 1    # one of them again
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from benchmarks.fuzz import schema, wire
from benchmarks.serving.service import Service, running

SCHEMA_REQUESTS, BYTES_REQUESTS = 20_000, 10_000
WARM_UP = 500  # requests after which memory is taken as the measure
PART = 1000  # requests between two looks at memory
MAX_GROWTH_BYTES = 20_000_000
SETTINGS = {"rate_per_s": 0, "receive_timeout_s": 0.5, "webhook_secret": "whsec_c2VjcmV0c2VjcmV0c2VjcmV0"}


def fuzz_schema(service: Service, requests: int, seed: int) -> bool:
    made, good = schema.run(service, requests=requests, seed=seed)
    print(f"schema: {made} requests, {'all as documented' if good else 'not all as documented'}")
    return good


def fuzz_bytes(service: Service, first: int, requests: int, seed: int) -> bool:
    warm_up = min(WARM_UP, requests // 2)
    answers, wrong = wire.run(service, first=first, requests=warm_up, seed=seed)
    before = service.api_rss()
    sizes = []
    for start in range(warm_up, requests, PART):
        part = min(PART, requests - start)
        more, more_wrong = wire.run(service, first=first + start, requests=part, seed=seed)
        answers.update(more)
        wrong += more_wrong
        sizes.append(service.api_rss())
    growth = sizes[-1] - before
    for line in wrong:
        print(line)
    print("bytes:", ", ".join(f"{count} x {name}" for name, count in sorted(answers.items())))
    print(
        f"memory of the API: {before / 1e6:.0f} MB after {warm_up} requests, {growth / 1e6:+.1f} MB at the end; every {PART}: "
        + ", ".join(f"{size / 1e6:.0f}" for size in sizes)
    )
    return not wrong and growth <= MAX_GROWTH_BYTES


def print_log(service: Service, good: bool) -> None:
    if not good:
        print(service.log.read_text()[-20_000:])


def main() -> int:
    """Run; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, help="of each; 20,000 and 10,000 by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("schema", "bytes"))
    parser.add_argument("--first", type=int, default=0, help="number of the first case of bytes")
    options = parser.parse_args()
    os.environ["CLIPSYNTH_LOG_FORMAT"] = "text"
    started = time.monotonic()
    print(f"seed {options.seed}", flush=True)
    good = True
    if options.only != "schema":
        with running(**SETTINGS) as service:
            good &= fuzz_bytes(service, options.first, options.requests or BYTES_REQUESTS, options.seed)
            print_log(service, good)
    if options.only != "bytes":
        with running(**SETTINGS) as service:
            good &= fuzz_schema(service, options.requests or SCHEMA_REQUESTS, options.seed)
            print_log(service, good)
    print(f"{time.monotonic() - started:.0f} seconds")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
