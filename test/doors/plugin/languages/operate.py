"""Does with the stack of a program in Python what `pulumi COMMAND` does: operate.py COMMAND DIRECTORY."""

import json
import os
import runpy
import sys

from pulumi import automation

command, directory = sys.argv[1:]
os.chdir(directory)


def program():
    runpy.run_path("__main__.py")


stack = automation.select_stack(
    stack_name="dev",
    project_name=automation.LocalWorkspace(work_dir=directory).project_settings().name,
    program=program,
    # as an argument of its own it is for programs with a language host only
    opts=automation.LocalWorkspaceOptions(work_dir=directory),
)
done = getattr(stack, command)()
counts = done.change_summary if command == "preview" else done.summary.resource_changes
outputs = {name: output.value for name, output in (getattr(done, "outputs", None) or {}).items()}
print(json.dumps({"counts": counts, "outputs": outputs, "text": done.stdout + done.stderr}))
