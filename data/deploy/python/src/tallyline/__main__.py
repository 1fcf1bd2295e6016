"""`python -m tallyline` is the program."""

import os
import sys

from tallyline import find_program

program = find_program()
os.execv(program, [program, *sys.argv[1:]])
