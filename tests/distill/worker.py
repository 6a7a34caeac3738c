"""One process of a run of several: ``torchrun -m tests.distill.worker FOLDER BATCH``."""

import sys
from pathlib import Path

from lada_ops.distill.lada_block import LadaBlockConfig
from lada_ops.distill.run import distill
from tests.distill.models import arguments, collate, examples, tiny_classifier


def student(folder: Path, batch: int):
    """Train in order, without dropout, on texts of one length: batch sizes do not matter."""
    args = arguments(
        folder / "work",
        per_device_train_batch_size=batch,
        train_sampling_strategy="sequential",
        save_strategy="steps",
        save_steps=4,
    )
    teacher = tiny_classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    train = [{**item, "input_ids": item["input_ids"][:4]} for item in examples(64)]
    recipe = LadaBlockConfig(ratio=4, rank_multiple=2)
    made = distill(teacher, recipe, args, train, collate, quiet=True)
    if args.should_save:
        made.save_pretrained(folder / "student")
    return made


if __name__ == "__main__":
    student(Path(sys.argv[1]), int(sys.argv[2]))
