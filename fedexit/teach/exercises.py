"""Define the exercises: the text and the stub that a student sees, and the hints. No answer is here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Exercise:
    """An exercise: one function that a student writes."""

    name: str  # name of the exercise in commands and grades
    notebook: str  # file name, without .ipynb, of the notebook that holds it
    title: str
    text: str  # Markdown, at most 120 words
    stub: str  # signature and docstring of the function; its body raises NotImplementedError
    hints: dict[str, str]  # by the name of a known wrong answer
    hint: str  # for every other wrong answer

    @property
    def function(self) -> str:
        """Return the name of the function."""
        return self.stub.split("(")[0].removeprefix("def ")


def _stub(signature: str, summary: str) -> str:
    return f'def {signature}:\n    """{summary}"""\n    raise NotImplementedError\n'


EXERCISES = (
    Exercise(
        "pooling",
        "1_model",
        "Statistics pooling with lengths",
        "A batch of clips is padded to the longest one. `states` has shape (B, F, D), and clip b has only `frames[b]` "
        "frames of its own. Return the mean over these frames, followed by the standard deviation: shape (B, 2D). The "
        "standard deviation is the square root of (variance + 0.00001), and the variance divides by the number of "
        "frames. A clip may have a single frame.",
        _stub("pool_statistics(states, frames)", "Return mean and standard deviation, (B, 2D), of each clip."),
        {
            "padding": "Your statistics include padded frames. Which frames of clip b belong to it?",
            "order": "Both statistics are there, in the other order. Which half comes first?",
            "bessel": "Your variance divides by the number of frames minus one. What happens with a single frame?",
            "variance": "The second half is a variance. Which operation makes it a standard deviation?",
            "epsilon": "A clip with one frame has the standard deviation 0 in your result. Read the formula once more.",
        },
        "Compute clip 0 by hand with `states[0, :frames[0]]`, and compare the shape with (B, 2D).",
    ),
    Exercise(
        "head",
        "1_model",
        "A head on an exit",
        "A head standardises the pooled statistics and applies one linear layer. `pooled` has shape (B, 2D), `centre` "
        "and `scale` (2D,), `weight` (labels, 2D) and `bias` (labels,). Subtract the centre, divide by the scale, then "
        "apply the linear layer. Return the logits, (B, labels).",
        _stub("head_logits(pooled, centre, scale, weight, bias)", "Return the logits, (B, labels)."),
        {
            "raw": "Your head reads statistics that are not standardised.",
            "multiplied": "You multiply by the scale. What does standardising do with it?",
            "biasless": "One parameter of the linear layer has no effect on your result.",
            "softmax": "Your rows add up to 1. Are these logits or probabilities?",
        },
        "Write down the shape of each step. The last one is (B, labels).",
    ),
    Exercise(
        "early_exit",
        "1_model",
        "Early exit by a threshold",
        "`confidence[i, k]` is the confidence of clip i at the exit `exits[k]`; exits are sorted, shallow first. A "
        "clip stops at the first exit whose confidence is at least `threshold`. If there is none, the deepest exit "
        "answers. Return a pair: the exit of each clip, and the mean depth over the clips.",
        _stub("early_exit(confidence, exits, threshold)", "Return the exit of each clip, and their mean."),
        {
            "surest": "You take the most confident exit. The layers above the first confident exit are never run.",
            "last": "You take the last exit that reaches the threshold. Which one is reached first?",
            "unsure": "Look at a clip that never reaches the threshold. Which exit answers for it?",
            "index": "You return positions in the list of exits. Which depths do they stand for?",
        },
        "Follow one clip through the exits by hand, and return exits first, then their mean.",
    ),
    Exercise(
        "eq1",
        "2_federation",
        "Eq. (1), by name",
        "`old` maps the names of all weights to arrays. `updates` is a list of triples (weights, n, L) of clients: the "
        "weights that the client trained, by name, its number of examples and its depth. Average each name over the "
        "clients that sent it, with the weights n * L**g. A name that nobody sent keeps its old value. Return a dict "
        "with all names.",
        _stub("aggregate(old, updates, g)", "Return the new weights by name."),
        {
            "everyone": "You divide by the weights of all clients. Who trained this name?",
            "examples": "The depth has no effect on your weights.",
            "equal": "All clients count equally in your mean. What are n and L for?",
            "exponent": "The exponent g has no effect on your result.",
            "lost": "Some names get lost, or become 0. What should happen with a name that nobody sent?",
        },
        "Compute one name by hand: list who sent it and with which weight.",
    ),
    Exercise(
        "layers",
        "2_federation",
        "The clients S_l of a layer, and empty layers",
        "`depths[i]` is the depth of client i: it trained layers 1 to `depths[i]`. Depth 0 means that no update "
        "arrived. Return a list with one entry for each layer 1 to `layers`: the sorted list of clients i that trained "
        "it. It is empty if there are none.",
        _stub("trained_by(depths, layers)", "Return the clients of each layer, a list of lists."),
        {
            "strict": "A client of depth 3 trains layer 3 as well.",
            "deepest": "A client of depth 3 trains layers 1 and 2 as well.",
            "dropped": "A layer without clients still has an entry.",
            "zero": "Your first entry belongs to layer 0. Layers count from 1.",
        },
        "Write the list for depths 2, 0, 1 and 3 layers by hand.",
    ),
    Exercise(
        "effective",
        "2_federation",
        "The effective number of clients",
        "A weighted mean over clients can rest on few of them. The effective number of clients with weights w is "
        "(sum of w)**2 / (sum of w**2). Client i has `examples[i]` examples and depth `depths[i]`; its weight in the "
        "layers 1 to `depths[i]` is n * L. Return the effective number for each layer 1 to `layers`, and 0 for a layer "
        "that nobody trained.",
        _stub("effective_clients(examples, depths, layers)", "Return the effective number of clients by layer."),
        {
            "counted": "You count the clients. One with much data counts more than one with little.",
            "examples": "Your weights are n alone.",
            "everyone": "Your numbers are the same in all layers. A client has no weight above its depth.",
            "inverse": "Your numbers are at most 1. For k equal clients the result must be k.",
            "undefined": "Your result is not a number where no client trained the layer.",
        },
        "Check three equal clients: the result must be 3 in each layer that all of them train.",
    ),
    Exercise(
        "depth",
        "2_federation",
        "The depth under a memory limit",
        "`needs` is a list of pairs (exit, memory of training to it), in any order. `free` lists the free memory of "
        "each device. A share `margin` of the free memory must stay free: an exit fits if its memory is at most "
        "(1 - margin) times the free memory. Return the deepest exit that fits for each device, and 0 if none fits.",
        _stub("deepest_exit(needs, free, margin)", "Return the exit of each device, 0 if none fits."),
        {
            "marginless": "Some devices fill their memory completely. What is the margin for?",
            "shallowest": "Each of your exits fits, and a deeper one may fit as well.",
            "forced": "Where no exit fits, you return one that does not fit.",
            "unsorted": "You rely on the order of `needs`.",
        },
        "List for one device which exits fit, then take the deepest.",
    ),
    Exercise(
        "partition",
        "2_federation",
        "A non-IID partition",
        "Each label is divided among clients by its own shares: `shares[c, k]` is the share of client k in label c, "
        "and each row adds up to 1. (A Dirichlet distribution usually draws the rows.) Take the clips of a label in "
        "their order, j = 0 to n - 1. Clip j goes to the first client whose cumulative share exceeds (j + 0.5) / n. "
        "Return the client of each clip of `labels`.",
        _stub("divide(labels, shares)", "Return the client of each clip."),
        {
            "global": "You number the clips over all labels. Here j and n count the clips of one label.",
            "start": "You compare with j / n, the start of clip j, and not with its middle.",
            "largest": "One client gets all clips of a label. Its share may be less than 1.",
            "onerow": "You use the same shares for all labels: this partition is IID.",
        },
        "Take one label, write its cumulative shares, and place its clips by hand.",
    ),
    Exercise(
        "wer",
        "3_evidence",
        "WER from counts",
        "`counts` has one row for each text: substitutions, deletions, insertions and hits. Return the word error rate "
        "over all texts: the number of errors divided by the number of words in the true texts. A true text can be "
        "empty.",
        _stub("word_error_rate(counts)", "Return the word error rate over all texts."),
        {
            "averaged": "You average the rates of texts. A text of one word then counts as much as one of twenty.",
            "insertions": "Words that nobody said are errors, too.",
            "hypothesis": "You divide by the number of predicted words.",
            "all": "Insertions are not in the true text, so they do not belong in the denominator.",
        },
        "Which of the four counts are errors, and which of them are words of the true text?",
    ),
    Exercise(
        "interval",
        "3_evidence",
        "Reading an interval",
        "Each row of `intervals` is (low, high, seeds): a 95 % interval for the error of A minus the error of B, in "
        "points, and its number of seeds. Return a verdict on A for each row. Below 5 seeds it is `demonstration`. "
        "Otherwise it is `better` or `worse` if the interval excludes 0, `equivalent` if it lies between -1 and +1, "
        "and `not resolved` in all other cases.",
        _stub("verdicts(intervals)", "Return a list with the verdict of each interval."),
        {
            "sign": "A negative difference means that A makes fewer errors.",
            "absence": "A wide interval around 0 does not show that A and B are equivalent.",
            "seeds": "You give verdicts on very few seeds.",
            "margin": "An interval that excludes 0 gets a direction, however small the difference is.",
        },
        "Draw the interval on a line with -1, 0 and +1, and read the rules in order.",
    ),
    Exercise(
        "row",
        "3_evidence",
        "Open: reproduce a row of a table",
        "`items` has one row for each clip and seed: (seed, errors, n). The error of a seed pools its clips: sum of "
        "errors / sum of n. Return a pair in per cent: the mean of these errors over the seeds, and their standard "
        "deviation with the divisor (number of seeds - 1). Then choose a row of a table in `results/`, reproduce it "
        "from `results/cells/`, and write in the last cell what you did, which number you got, and why it differs if "
        "it does. Your teacher marks this text.",
        _stub("table_row(items)", "Return mean and standard deviation over seeds, in per cent."),
        {
            "clips": "You average the rates of clips. Pool the counts of a seed first.",
            "pooled": "You pool all seeds. The mean is over the errors of seeds.",
            "population": "The spread is right up to its divisor.",
            "fraction": "The size is wrong by a constant factor. Which unit does the text ask for?",
        },
        "Compute the error of each seed first and print them.",
    ),
)

BY_NAME = {exercise.name: exercise for exercise in EXERCISES}
