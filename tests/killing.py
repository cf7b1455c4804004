"""A program that kills the command line again and again, as a crash would."""

# Starts the command line in a process of its own, kills it when its output has so many lines, and starts it again.
KILLER = """
import os, signal, sys, time
import torch, PIL.Image, convnext.cli, convnext.inference.bulk, convnext.inference.embeddings
output, targets, sys.argv = sys.argv[1], [int(number) for number in sys.argv[2].split(",")], ["convnext", *sys.argv[3:]]
statuses = []
for target in [*targets, None]:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            convnext.cli.main()
        except SystemExit as error:
            code = error.code or 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    while target is not None and not (os.path.exists(output) and open(output, "rb").read().count(b"\\n") >= target):
        if os.waitpid(child, os.WNOHANG)[0]:
            sys.exit("it ended before it could be killed")
        time.sleep(0.001)
    if target is not None:
        os.kill(child, signal.SIGKILL)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(statuses)
"""
