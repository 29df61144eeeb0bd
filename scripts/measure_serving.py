"""Latency and throughput of `malt serve`: one request at a time, and many clients at once.

    malt serve --run runs/quickstart --port 8000
    python scripts/measure_serving.py http://127.0.0.1:8000/v1 --clients 64 --requests 256

Prints one JSON object per number of clients: requests a second, and the median, the 95th percentile
and the largest of the seconds per request. Needs `pip install openai`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import openai


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", help="the address that `malt serve` prints")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--requests", type=int, default=256, help="of all clients together")
    parser.add_argument("--model", default="malt")
    options = parser.parse_args()
    client = openai.OpenAI(base_url=options.url, api_key="none", max_retries=0, timeout=600)
    rng = random.Random(0)

    def ask(question: str) -> tuple[float, int]:
        began = time.perf_counter()
        message = {"role": "user", "content": question}
        reply = client.chat.completions.create(model=options.model, messages=[message])
        return time.perf_counter() - began, reply.usage.completion_tokens

    def sums(count: int) -> list[str]:
        return ["+".join(str(rng.randint(1, 9)) for _ in range(8)) for _ in range(count)]

    for clients in options.clients:
        with ThreadPoolExecutor(clients) as threads:
            # What is compiled for batches of this size is compiled before the clock runs.
            list(threads.map(ask, sums(2 * clients)))
            # One client alone would take long for all of them.
            count = options.requests if clients > 1 else max(1, options.requests // 8)
            began = time.perf_counter()
            answers = list(threads.map(ask, sums(count)))
            elapsed = time.perf_counter() - began
        seconds = sorted(latency for latency, _ in answers)
        figures = {
            "clients": clients,
            "requests": count,
            "requests_per_second": round(count / elapsed, 2),
            "tokens_per_second": round(sum(tokens for _, tokens in answers) / elapsed),
            "median_seconds": round(statistics.median(seconds), 3),
            "p95_seconds": round(seconds[int(0.95 * (count - 1))], 3),
            "largest_seconds": round(seconds[-1], 3),
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
