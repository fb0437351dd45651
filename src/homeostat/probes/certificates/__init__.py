"""From which step on an answer is safe from more steps: `certify`."""
