"""Recordings of spoken words as log-mel pictures, all of one size."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from typing import Any

import numpy as np

from farout.data._find import find
from farout.errors import BadInput, MissingExtra

RATE = 8_000
HOP, WINDOW, TRANSFORM = 200, 400, 512  # samples: 25, 50 and 64 ms
BANDS, FRAMES = 32, 32  # 0.8 s


def spoken(name: str, every: int = 1) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Read the recordings of an archive below ``audio``.

    Parameters
    ----------
    name : str
        ``"fsdd"`` or ``"prompt_words"``.
    every : int
        Read every so manieth recording; the manifest is ordered by word and speaker.

    Returns
    -------
    mels_NFT : float32 array (n, 32, 32)
        Log-mel pictures, bands by frames.
    about : list of dict
        The rows of the manifest.

    Raises
    ------
    DataMissing
        The archive is not at hand.
    MissingExtra
        soundfile, which reads FLAC, is not installed.
    """
    try:
        import soundfile
    except ImportError as error:
        raise MissingExtra("reading recordings", "audio") from error
    with zipfile.ZipFile(find(f"audio/{name}.zip")) as archive:
        head, *lines = archive.read(f"{name}/manifest.tsv").decode().splitlines()
        about = [dict(zip(head.split("\t"), line.split("\t"))) for line in lines[::every]]
        mels = []
        for row in about:
            wave, rate = soundfile.read(io.BytesIO(archive.read(row["file"])), dtype="float32")
            if rate != RATE:
                raise BadInput(f"'{row['file']}' has {rate} samples a second, and {RATE} are expected")
            mels.append(log_mel(wave))
    return np.stack(mels), about


def log_mel(wave: np.ndarray) -> np.ndarray:
    """Return the log-mel picture (32, 32) of the middle 0.8 s of a recording, of mean 0 and deviation 1.

    The recording is brought to one loudness first, so that a set is not told by its level; silence fills what lacks.

    Examples
    --------
    >>> tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)
    >>> picture = log_mel(tone)
    >>> picture.shape, int(picture.mean(1).argmax())
    ((32, 32), 14)
    """
    wave = wave / max(float(np.sqrt(np.mean(np.square(wave)))), 1e-6)
    length = HOP * (FRAMES - 1) + WINDOW
    if len(wave) > length:
        wave = wave[(len(wave) - length) // 2 :][:length]
    spare = length - len(wave)
    wave = np.pad(wave, (spare // 2, spare - spare // 2))
    frames_TW = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP]
    power_TK = np.square(np.abs(np.fft.rfft(frames_TW * np.hanning(WINDOW), TRANSFORM)))
    # the floor lies well below the word: what is quieter says more of the room than of the word
    picture = np.log(power_TK @ _bands().T + 1e-2).T
    return ((picture - picture.mean()) / picture.std()).astype(np.float32)


@cache
def _bands() -> np.ndarray:
    """Return triangular filters (bands, frequencies), evenly spaced in mel between 0 and half the rate."""

    def mel(hertz: Any) -> Any:
        return 2595 * np.log10(1 + hertz / 700)

    places = np.linspace(0, mel(RATE / 2), BANDS + 2)
    at = mel(np.fft.rfftfreq(TRANSFORM, 1 / RATE))
    rising = (at - places[:-2, None]) / (places[1:-1] - places[:-2])[:, None]
    falling = (places[2:, None] - at) / (places[2:] - places[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling))
