"""Give a class exercises, checks and a grader. Nothing here needs torch, except the making of a key.

exercises  texts, stubs and hints of the exercises
inputs     random inputs of the exercises
keys       recorded results: inputs with hashes of the right and of the known wrong results
checking   the check that a student runs: `from fedexit.teach import check`
student    the notebooks of students
grading    grades of many submissions
runner     one submission in a process of its own, with limits
"""

from fedexit.teach.checking import check as check
