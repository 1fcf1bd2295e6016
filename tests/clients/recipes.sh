#!/usr/bin/env bash
# The recipes for tests of one's own, in Python and Node, run as they are. Needs python3, node.
. "$(dirname "$0")/lib.sh"

python3 "$clients/recipe_python.py" "$bin" 2>"$tmp/python.log"
node "$clients/recipe_node.mjs" "$bin" 2>"$tmp/node.log"
