"""DeepAR of gluonts on one task, run by the interpreter of an environment that has gluonts.

    python timeseries_deepar.py TASK.npz FORECASTS.npz --epochs 10 --batches 50 --seed 0

It imports nothing of this project, because gluonts needs pandas < 3. The files are those that
``benchmarks.timeseries`` writes and reads: series one behind the other with their offsets.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    parser.add_argument("out")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import lightning
    import pandas as pd
    import torch
    from gluonts.torch.model.deepar import DeepAREstimator

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    begin = time.process_time()
    lightning.seed_everything(options.seed, verbose=False)
    with np.load(options.task, allow_pickle=False) as file:
        task = {key: file[key] for key in file.files}
    freq = str(task["freq"])

    def entries(part: str) -> list[dict]:
        offsets, starts = task[f"{part}_offsets"], task[f"{part}_start"]
        return [
            {
                "start": pd.Period(str(starts[i]), freq=freq),
                "target": task[part][offsets[i] : offsets[i + 1]],
                "item_id": str(i),
            }
            for i in range(len(starts))
        ]

    horizon = int(task["horizon"])
    trainer = {"max_epochs": options.epochs, "accelerator": "cpu", "logger": False,
               "enable_progress_bar": False, "enable_checkpointing": True,
               "enable_model_summary": False}  # fmt: skip
    # Everything else is the library's default: two layers of 40, the context one horizon.
    estimator = DeepAREstimator(
        freq=freq,
        prediction_length=horizon,
        num_batches_per_epoch=options.batches,
        trainer_kwargs=trainer,
    )
    predictor = estimator.train(entries("train"))
    forecasts = predictor.predict(entries("history"), num_samples=options.samples)
    samples = np.stack([f.samples for f in forecasts]).astype(np.float32)
    np.savez_compressed(options.out, samples=samples, cpu_s=time.process_time() - begin)


if __name__ == "__main__":
    main()
