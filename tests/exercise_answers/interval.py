def right_rules(intervals):
    return [rule(*row) for row in intervals]


def rule(low, high, seeds):
    if seeds < 5:
        return "demonstration"
    if high < 0:
        return "better"
    if low > 0:
        return "worse"
    return "equivalent" if low > -1 and high < 1 else "not resolved"


def right_table(intervals):
    found = ["not resolved"] * len(intervals)
    for place, (low, high, seeds) in enumerate(intervals):
        if max(-low, high) < 1:
            found[place] = "equivalent"
        if low * high > 0:
            found[place] = "worse" if low > 0 else "better"
        if not seeds >= 5:
            found[place] = "demonstration"
    return tuple(found)


def wrong_sign(intervals):
    other = {"better": "worse", "worse": "better"}
    return [other.get(verdict, verdict) for verdict in right_rules(intervals)]


def wrong_absence(intervals):
    return [verdict.replace("not resolved", "equivalent") for verdict in right_rules(intervals)]


def wrong_seeds(intervals):
    return [rule(low, high, 5) for low, high, _ in intervals]


def wrong_margin(intervals):
    small = [seeds >= 5 and low > -1 and high < 1 for low, high, seeds in intervals]
    return ["equivalent" if inside else one for inside, one in zip(small, right_rules(intervals), strict=True)]
