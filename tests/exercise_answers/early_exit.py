import numpy as np


def right_loop(confidence, exits, threshold):
    chosen = []
    for row in confidence:
        confident = [depth for depth, value in zip(exits, row, strict=True) if value >= threshold]
        chosen.append((confident or exits[-1:])[0])
    return chosen, sum(chosen) / len(chosen)


def right_argmax(confidence, exits, threshold):
    stops = confidence >= threshold
    stops[:, -1] = True
    chosen = np.array(exits)[stops.argmax(1)]
    return [chosen, chosen.mean()]


def wrong_surest(confidence, exits, threshold):
    chosen = np.array(exits)[confidence.argmax(1)]
    return chosen, chosen.mean()


def wrong_last(confidence, exits, threshold):
    stops = (confidence >= threshold)[:, ::-1]
    chosen = np.where(stops.any(1), np.array(exits)[::-1][stops.argmax(1)], exits[-1])
    return chosen, chosen.mean()


def wrong_unsure(confidence, exits, threshold):
    chosen = np.array(exits)[(confidence >= threshold).argmax(1)]
    return chosen, chosen.mean()


def wrong_index(confidence, exits, threshold):
    chosen = [exits.index(depth) for depth in right_loop(confidence, exits, threshold)[0]]
    return chosen, sum(chosen) / len(chosen)
