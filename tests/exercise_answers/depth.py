def right_max(needs, free, margin):
    return [max((e for e, need in needs if need <= (1 - margin) * memory), default=0) for memory in free]


def right_loop(needs, free, margin):
    found = []
    for memory in free:
        best = 0
        for depth, need in sorted(needs):
            if need / memory <= 1 - margin:
                best = depth
        found.append(best)
    return found


def wrong_marginless(needs, free, margin):
    return right_max(needs, free, 0)


def wrong_shallowest(needs, free, margin):
    return [min((e for e, need in needs if need <= (1 - margin) * memory), default=0) for memory in free]


def wrong_forced(needs, free, margin):
    return [depth or min(needs)[0] for depth in right_max(needs, free, margin)]


def wrong_unsorted(needs, free, margin):
    return [([0] + [e for e, need in needs if need <= (1 - margin) * memory])[-1] for memory in free]
