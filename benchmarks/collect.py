"""The accuracies of several audits as one CSV file: `python benchmarks/collect.py AUDIT.json … > FILE.csv`."""

import csv
import json
import sys


def rows(path: str):
    """One row for every model, difficulty and budget of an audit."""
    with open(path) as file:
        audits = json.load(file)["audits"]
    for audit in audits:
        for difficulty in audit["difficulties"]:
            for budget in difficulty["budgets"]:
                exact, symbol = budget["exact"], budget["symbol"]
                yield {
                    "model": audit["model"],
                    "description": audit["description"],
                    "examples": difficulty["name"],
                    "n": exact["count"],
                    "steps": budget["steps"],
                    "exact": exact["value"],
                    "exact_low": exact["low"],
                    "exact_high": exact["high"],
                    "symbol": symbol["value"],
                    "settled": budget["settled"]["value"],
                    "residual_median": budget["residual_median"],
                    "failed": budget["failed"],
                    "seconds": round(audit["settings"]["seconds"]),
                    "torch": audit["settings"]["versions"]["torch"],
                }


def main(paths: list[str]) -> None:
    """Write all rows to standard output."""
    found = [row for path in paths for row in rows(path)]
    writer = csv.DictWriter(sys.stdout, fieldnames=list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)


if __name__ == "__main__":
    main(sys.argv[1:])
