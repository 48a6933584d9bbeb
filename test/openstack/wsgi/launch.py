"""launch.py NAME MODULE [ARGUMENT...]: run MODULE's main() under NAME.

Debian's python3-* packages hold the code of a service and not its script.
"""
import importlib
import sys

name, module = sys.argv[1:3]
sys.argv = [name] + sys.argv[3:]
sys.exit(importlib.import_module(module).main())
