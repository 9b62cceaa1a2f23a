"""Statistics over runs: intervals, verdicts, reproduction of published results, gates."""
