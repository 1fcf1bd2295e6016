#!/usr/bin/env bash
# Runs the examples of tests with tallyline in Python and Node. Needs python3, node.
. "$(dirname "$0")/lib.sh"

python3 "$clients/recipe_python.py" "$bin" 2>"$tmp/python.log"
node "$clients/recipe_node.mjs" "$bin" 2>"$tmp/node.log"
