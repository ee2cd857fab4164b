"""A fit in a process group of one, for test_fits.py; prints the backend and the widths after the cut."""

import sys

import lightning.pytorch as pl
import torch.distributed as dist
from helpers.fits import Classifier, callback, train_loader, val_loader, widths
from lightning.pytorch.strategies import DDPStrategy


def main(device: str, folder: str) -> None:
    """See the top of this file."""
    module = Classifier()
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator=device,
        devices=1,
        strategy=DDPStrategy(process_group_backend="nccl" if device == "cuda" else "gloo"),
        callbacks=[callback()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, train_loader(), val_loader())
    print(dist.get_backend(), widths(module))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
