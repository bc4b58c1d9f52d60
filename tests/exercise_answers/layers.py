def right_list(depths, layers):
    return [[client for client, depth in enumerate(depths) if depth >= layer] for layer in range(1, layers + 1)]


def right_append(depths, layers):
    found = [[] for _ in range(layers)]
    for client, depth in enumerate(depths):
        for layer in range(min(depth, layers)):
            found[layer].append(client)
    return tuple(found)


def wrong_strict(depths, layers):
    return [[client for client, depth in enumerate(depths) if depth > layer] for layer in range(1, layers + 1)]


def wrong_deepest(depths, layers):
    return [[client for client, depth in enumerate(depths) if depth == layer] for layer in range(1, layers + 1)]


def wrong_dropped(depths, layers):
    return [clients for clients in right_list(depths, layers) if clients]


def wrong_zero(depths, layers):
    return [[client for client, depth in enumerate(depths) if depth >= layer] for layer in range(layers)]
