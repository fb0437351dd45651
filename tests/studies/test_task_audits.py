"""Audits of checkpoints on their own task."""

from homeostat.models import load
from homeostat.studies import instances
from homeostat.studies.task_audit import audit_checkpoint
from homeostat.tasks import get_task


def test_no_example_is_left_alone_in_a_batch(bits_checkpoint, monkeypatch):
    monkeypatch.setattr(instances, "_BATCH_POSITIONS", 32)  # four strings of eight bits a batch
    found = audit_checkpoint(load(bits_checkpoint), get_task("prefix-sums"), {8: 9}, steps=[2])
    difficulty = found.difficulty("8 bits")
    assert difficulty.count == 9
    swapped = next(a for a in difficulty.alignments if a.start == "swapped")
    assert swapped.cosine.count == 9
    assert not difficulty.notes


def test_progress_ends_at_the_whole(bits_checkpoint):
    told = []
    task = get_task("prefix-sums")
    audit_checkpoint(load(bits_checkpoint), task, {8: 3, 12: 2}, steps=[1, 3], on_progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_large_instances_come_two_or_three_at_a_time(monkeypatch):
    monkeypatch.setattr(instances, "_BATCH_POSITIONS", 8)
    sizes = [[len(targets) for _, targets in instances.Instances(get_task("prefix-sums"), 8, n)] for n in (1, 2, 3, 5)]
    assert sizes == [[1], [2], [3], [2, 3]]
