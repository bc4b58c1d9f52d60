import numpy as np


def right_loop(states, frames):
    rows = []
    for clip, count in zip(states, frames, strict=True):
        own = clip[:count]
        rows.append(np.concatenate([own.mean(0), np.sqrt(own.var(0) + 1e-5)]))
    return np.array(rows)


def right_mask(states, frames):
    inside = (np.arange(states.shape[1]) < frames[:, None])[..., None]
    mean = (states * inside).sum(1) / frames[:, None]
    square = (states**2 * inside).sum(1) / frames[:, None]
    return np.hstack([mean, (square - mean**2 + 1e-5) ** 0.5]).tolist()


def wrong_padding(states, frames):
    return np.hstack([states.mean(1), np.sqrt(states.var(1) + 1e-5)])


def wrong_order(states, frames):
    both = right_loop(states, frames)
    half = both.shape[1] // 2
    return np.hstack([both[:, half:], both[:, :half]])


def wrong_bessel(states, frames):
    pairs = [(s[:n].mean(0), np.sqrt(s[:n].var(0) * n / (n - 1) + 1e-5)) for s, n in zip(states, frames, strict=True)]
    return np.array([np.concatenate(pair) for pair in pairs])


def wrong_variance(states, frames):
    both = right_loop(states, frames)
    half = both.shape[1] // 2
    return np.hstack([both[:, :half], both[:, half:] ** 2])


def wrong_epsilon(states, frames):
    return np.array([np.concatenate([s[:n].mean(0), s[:n].std(0)]) for s, n in zip(states, frames, strict=True)])
