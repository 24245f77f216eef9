"""A user's own arrays (.npy) and sounds (.wav), read without trusting them, and written.

Axes: H W pixels, C channels, T samples.
"""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io.wavfile

MAX_BYTES = 4_000_000_000  # of one array or sound


@dataclass(frozen=True)
class Sound:
    """Samples [C, T] as float32, integers divided by their largest value; what it takes to write them back."""

    samples: np.ndarray
    rate_hz: int
    dtype: np.dtype


def read_array(path: Path) -> np.ndarray:
    """A numeric array of a .npy file, unpickled never and read only where it is looked at.

    Raises ValueError, naming the file, for what is no such file, is truncated, empty, or holds NaN or infinities.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy's reader of headers ends in whatever damage leads to, TokenError among it
        if path.stat().st_size == 0:
            raise ValueError(f"{path}: the file is empty") from error
        reason = (str(error) or type(error).__name__).splitlines()[0][:100]
        raise ValueError(f"{path}: broken, truncated or not a .npy file of numbers ({reason})") from error
    if not isinstance(array, np.ndarray):  # an archive of arrays, named .npy
        raise ValueError(f"{path}: an archive of arrays; expected a single one, as numpy.save writes it")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{path}: an array of {array.dtype}; expected real numbers")
    if array.size == 0:
        raise ValueError(f"{path}: an array of shape {list(array.shape)}, which holds nothing")
    if array.nbytes > MAX_BYTES:
        raise ValueError(f"{path}: {array.nbytes / 1e9:.1f} GB; expected at most {MAX_BYTES / 1e9:.0f} GB")
    refuse_nonfinite(array, str(path))
    return array


def refuse_nonfinite(array: np.ndarray, where: str) -> None:
    """Raise ValueError for NaN and infinities, which would spread over everything that sees them."""
    if array.dtype.kind == "f":
        bad = sum(int(np.count_nonzero(~np.isfinite(part))) for part in np.array_split(array.reshape(-1), 16))
        if bad:
            raise ValueError(f"{where}: {bad} of {array.size} values are NaN or infinite; replace them first")


def read_sound(path: Path) -> Sound:
    """A WAV file of integers or floats. Raises ValueError, naming the file, for one that is broken or truncated."""
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size / 1e9:.1f} GB; expected at most {MAX_BYTES / 1e9:.0f} GB")
    try:
        with warnings.catch_warnings(action="error", category=scipy.io.wavfile.WavFileWarning):
            warnings.filterwarnings("ignore", "Chunk .* not understood")
            rate, samples = scipy.io.wavfile.read(path)
    except PermissionError:
        raise
    except Exception as error:  # scipy's reader ends in whatever its first wrong guess leads to
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise ValueError(f"{path}: broken, truncated or not a WAV file ({reason})") from error
    if samples.size == 0:
        raise ValueError(f"{path}: a sound without samples")
    planes = samples[None] if samples.ndim == 1 else samples.T
    refuse_nonfinite(planes, str(path))
    return Sound(_as_float(planes), int(rate), samples.dtype)


def _as_float(samples: np.ndarray) -> np.ndarray:
    """PCM as float32 in -1..1: 8 bits are unsigned with silence at 128."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)


def encode_sound(sound: Sound) -> bytes:
    """A WAV file in the sound's own type; what is beyond -1..1 is clipped where that is an integer."""
    values = sound.samples.T if len(sound.samples) > 1 else sound.samples[0]
    if sound.dtype == np.uint8:
        values = np.clip(np.round(values * 128 + 128), 0, 255)
    elif sound.dtype.kind == "i":
        limits = np.iinfo(sound.dtype)
        values = np.clip(np.round(values.astype(np.float64) * -float(limits.min)), limits.min, limits.max)
    buffer = io.BytesIO()
    scipy.io.wavfile.write(buffer, sound.rate_hz, values.astype(sound.dtype))
    return buffer.getvalue()


def encode_array(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
