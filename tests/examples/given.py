"""What a page takes for granted: rows and models that its reader has, and names in its Python."""

import gzip
import json
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from service.tables import samples
from tests.conftest import COLUMNS, table_rows

COUNT = 400


@dataclass(frozen=True)
class Given:
    models: tuple[str, ...] = ()
    """From the store that is trained once a session."""
    files: tuple[Callable[[Path], None], ...] = ()
    """Write what the page's commands read into a folder."""
    names: Callable[[Path], Mapping[str, Any]] = lambda _: {}
    brief: bool = True
    """Whether few epochs will do: the page shows no results that depend on them."""

    def lay_out(self, folder: Path, trained_store: Path) -> None:
        for model in self.models:
            shutil.copytree(trained_store / model, folder / "model_store" / model)
        for write in self.files:
            write(folder)


def frame(count: int = COUNT, *, seed: int = 5) -> pd.DataFrame:
    """Rows of the model ``payments`` of the trained store."""
    return pd.DataFrame(table_rows(count, seed=seed), columns=list(COLUMNS))


def payments(folder: Path) -> None:
    """A CSV as many have one: an id, a remark, numbers."""
    table = frame()[["amount", "age", "visits"]].round(2)
    table.insert(0, "id", range(COUNT))
    table["comment"] = [f"remark {number}, free text" for number in range(COUNT)]
    table.to_csv(folder / "payments.csv", index=False)


def payments_with_zip(folder: Path) -> None:
    """The same, with a postcode, and ages that are not known."""
    payments(folder)
    table = pd.read_csv(folder / "payments.csv")
    table["zip"] = np.where(table["amount"] > table["amount"].median(), 10115, 80331)
    table.loc[::10, "age"] = None
    table.to_csv(folder / "payments.csv", index=False)


def days(folder: Path) -> None:
    (folder / "days").mkdir()
    for day in (1, 2):
        table = frame(200, seed=day)[["amount", "age", "visits"]]
        table.insert(0, "id", range(200))
        table["label"] = np.where(np.arange(200) % 20 == 0, "fraud", "normal")
        table.to_parquet(folder / f"days/{day}.parquet")


def rows(folder: Path) -> None:
    """Rows of the model ``payments``, in the files of many trades."""
    table = frame()
    table.insert(0, "id", range(COUNT))
    table.to_csv(folder / "rows.csv", index=False)
    table.to_csv(folder / "rows.csv.gz", index=False)
    table.to_parquet(folder / "rows.parquet")
    table.to_json(folder / "day.ndjson.gz", orient="records", lines=True)
    (folder / "year=2026").mkdir()
    for month in (1, 2):
        table.to_parquet(folder / f"year=2026/{month}.parquet")


def photographs(folder: Path) -> None:
    random = np.random.default_rng(0)
    (folder / "photographs").mkdir()
    for number, pixels in enumerate(_pictures(60, 12, random)):
        Image.fromarray(pixels).save(folder / f"photographs/{number}.png")


def handwriting(folder: Path) -> None:
    """A file as MNIST has them."""
    pixels = _pictures(60, 12, np.random.default_rng(1))
    header = struct.pack(">4B3I", 0, 0, 8, 3, *pixels.shape)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))


def _pictures(count: int, side: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Bright spots on dark ground, somewhere else in each."""
    at = np.arange(side)
    x, y = random.uniform(2, side - 2, (2, count, 1))
    spots: NDArray[np.float64] = np.exp(-((at - x) ** 2) / 8)[:, None, :] * np.exp(-((at - y) ** 2) / 8)[:, :, None]
    return (spots * 255).astype(np.uint8)


def boiler(folder: Path) -> None:
    """Some months of load and temperature, hour by hour."""
    hours = np.arange(2000)
    random = np.random.default_rng(0)
    table = pd.DataFrame({"time": np.datetime64("2026-01-01", "s") + hours * np.timedelta64(1, "h")})
    table["load"] = 100 + 20 * np.sin(2 * np.pi * hours / 24) + random.normal(size=len(hours))
    table["warm"] = 15 + 5 * np.sin(2 * np.pi * (hours - 1) / 24) + 0.3 * random.normal(size=len(hours))
    table.to_csv(folder / "boiler.csv", index=False)


def pictures(folder: Path) -> None:
    """``images.npy`` comes later; ``rows.npy`` and a model of such rows are there already."""
    from tests.training.networks import classic

    np.save(folder / "rows.npy", _pictures(200, 28, np.random.default_rng(2)))
    classic().save(folder / "autoencoder.keras")


def bring_names(_: Path) -> dict[str, Any]:
    return {"images": _pictures(1000, 28, np.random.default_rng(3))}


def readme_names(_: Path) -> dict[str, Any]:
    from sklearn.datasets import load_digits

    rows = samples.payments(20, seed=1).to_pandas().drop(columns=["id", "label"])
    return {"images": load_digits().images[:5].astype(np.float32), "rows": rows}


def client_names(_: Path) -> dict[str, Any]:
    return {"frame": frame(80), "batches": [frame(80), frame(80)]}


def images_names(folder: Path) -> dict[str, Any]:
    """A version's manifest, as ``GET /models/{model}/versions/{version}`` gives it, and its network."""
    import keras

    version = folder / "model_store/digits/1/assets.extra"
    shutil.copy(version / "model.keras", folder)
    manifest = json.loads((version / "manifest.json").read_text())
    latents = np.random.default_rng(0).normal(size=(5, manifest["latent_dim"]))
    return {"np": np, "keras": keras, "manifest": manifest, "latents": latents}


def protocols_names(_: Path) -> dict[str, Any]:
    return {"numpy_rows": np.array([[1, 2], [3, 4]], np.float32)}


GIVEN = {
    "README.md": Given(("digits",), names=readme_names),
    "docs/bring-your-own.md": Given(files=(pictures, boiler, payments), names=bring_names),
    "docs/client.md": Given(("payments",), names=client_names),
    "docs/console.md": Given(("digits",)),
    "docs/how-to/data-scientist.md": Given(files=(payments,)),
    "docs/how-to/operator.md": Given(("payments",)),
    "docs/how-to/pipeline-author.md": Given(("payments",), (rows,)),
    "docs/how-to/service-owner.md": Given(("digits",)),
    "docs/images.md": Given(("digits",), (photographs, handwriting), images_names),
    "docs/pipelines.md": Given(("payments",), (rows,)),
    "docs/stores.md": Given(files=(payments,)),
    "docs/protocols.md": Given(names=protocols_names),
    "docs/tables.md": Given(files=(payments_with_zip, days)),
    "docs/training.md": Given(files=(payments,)),
    "docs/tutorial.md": Given(brief=False),
}


def given(page: str) -> Given:
    return GIVEN.get(page, Given())
