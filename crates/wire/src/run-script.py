#!/usr/bin/python3
# Runs the role's post-boot script and tells the host what became of it. cloud-init calls it at each boot, before the
# user's own scripts; so it waits in the background until cloud-init is through with those.
import json, os, signal, subprocess, time, urllib.request

BASE = "http://169.254.169.254/mayfly/v1/script"
FOLDER = "/var/lib/mayfly"
OUTPUT_BYTES = 16384
DONE = "/run/cloud-init/result.json"
PATIENCE = 3600


def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    for _ in range(60):
        try:
            request = urllib.request.Request(BASE + path, data=data, headers={"Metadata": "true"})
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.read()
        except OSError:
            time.sleep(1)
    raise SystemExit("the host does not answer")


def run(path, seconds):
    try:
        child = subprocess.Popen([path], cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, start_new_session=True)
    except OSError as error:
        # As a shell says it: what should interpret it is not there, or it is no script.
        return 127, "the script cannot be run: %s\n" % error
    try:
        output, _ = child.communicate(timeout=seconds)
        status = child.returncode
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output, _ = child.communicate()
        status = None
    return status, output[-OUTPUT_BYTES:].decode(errors="replace")


def main():
    goal = json.loads(ask(""))
    report = {"attempt": 0, "status": 0, "last": True, "output": ""}
    os.makedirs(FOLDER, mode=0o700, exist_ok=True)
    done = os.path.join(FOLDER, "done-" + goal["vm"])
    if goal["script"] is not None and not goal["each_boot"] and os.path.exists(done):
        with open(done) as file:
            report = json.load(file)
    elif goal["script"] is not None:
        path = os.path.join(FOLDER, "script")
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o700), "w") as file:
            file.write(goal["script"])
        for attempt in range(1, goal["tries"] + 1):
            status, output = run(path, goal["timeout_seconds"])
            last = status == 0 or attempt == goal["tries"]
            report = {"attempt": attempt, "status": status, "last": last, "output": output}
            if last:
                break
            ask("/report", report)
            time.sleep(min(30, 2 ** attempt))
        with open(done, "w") as file:
            json.dump(report, file)
    ask("/report", report)


if os.fork() == 0:
    os.setsid()
    for number in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    deadline = time.monotonic() + PATIENCE
    while not os.path.exists(DONE) and time.monotonic() < deadline:
        time.sleep(0.1)
    main()
