"""Define the commands for a class: `fedexit exercises`, `fedexit key` and `fedexit grade`."""

import argparse
from collections.abc import Callable

from fedexit.support.errors import FedexitError

_LIMITS = {"cpu": (1, 3600), "memory": (256, 1_000_000)}  # seconds, MB; 0 would mark every answer as wrong


def add_teach_commands(commands: argparse._SubParsersAction, command: Callable) -> None:
    """Add these commands; `command` is the function of `fedexit.cli` that adds one with its handler and example."""
    text = "write the notebooks with exercises that students get"
    exercises = command(commands, "exercises", _exercises, text, "fedexit exercises --out class")
    exercises.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")
    text = "make a teacher's key: secret inputs with hashes of the right results"
    example = "fedexit key --answers tests/exercise_answers --out key.json"
    key = command(commands, "key", _key, text, example)
    key.add_argument("--answers", required=True, metavar="FOLDER", help="folder with right and known wrong answers")
    key.add_argument("--out", required=True, metavar="FILE.json", help="file to write; keep it from students")
    key.add_argument("--seed", type=int, metavar="N", help="seed of the inputs (default: a secret one)")
    text = "grade notebooks of students, each in a process of its own with limits (Linux)"
    example = "fedexit grade class/*.ipynb --key key.json --out grades.csv"
    grade = command(commands, "grade", _grade, text, example)
    grade.add_argument("files", nargs="+", metavar="FILE", help="a notebook, or a folder of notebooks, per student")
    grade.add_argument("--out", required=True, metavar="FILE.csv", help="file to write")
    text = "a key of `fedexit key` (default: the inputs that students check with)"
    grade.add_argument("--key", metavar="FILE.json", help=text)
    text = "an exercise that counts; may be given several times (default: all)"
    grade.add_argument("--exercise", dest="exercises", action="append", default=[], metavar="NAME", help=text)
    text = "seconds of computing time of each exercise (default: %(default)s)"
    grade.add_argument("--cpu", type=int, default=5, metavar="SECONDS", help=text)
    grade.add_argument("--memory", type=int, default=1024, metavar="MB", help="memory of each exercise (%(default)s)")


def _exercises(args: argparse.Namespace) -> None:
    from fedexit.teach.student import write_notebooks

    new = write_notebooks(args.out)
    print("\n".join(map(str, new)) if new else f"{args.out}: nothing to do, the notebooks are there")


def _key(args: argparse.Namespace) -> None:
    from fedexit.teach.keys import write_key

    print(f"key: {write_key(args.answers, args.out, args.seed)}; keep it from students")


def _grade(args: argparse.Namespace) -> None:
    from fedexit.teach.grading import Limits, grade, protection

    for name, (least, most) in _LIMITS.items():
        if not least <= (value := getattr(args, name)) <= most:
            raise FedexitError(f"--{name} must be from {least} to {most}, not {value}")
    print(protection())
    limits = Limits(cpu=args.cpu, wall=4.0 * args.cpu, memory=args.memory)
    grades = grade(args.files, args.out, args.key, args.exercises, limits)
    print(f"{args.out}: {sum(one.mark for one in grades)} of {len(grades)} answers are right")
