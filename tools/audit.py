"""Known vulnerabilities among the pinned packages: `make audit` runs pip-audit on the lock and says what it could see.

Exits 1 when a pinned package has a known vulnerability. An index that gives no advisories (a mirror, an isolated
network) is said, not hidden: what was not audited is counted, and with `--strict` the exit code is 2.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements" / "cpu.lock"


def main() -> None:
    command = [sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--no-deps", "--disable-pip", "-f", "json"]
    done = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        sys.exit(f"pip-audit gave no answer:\n{done.stderr}")
    unseen = [each["name"] for each in packages if "skip_reason" in each]
    vulnerable = [each for each in packages if each.get("vulns")]
    print(f"{len(packages) - len(unseen)} of {len(packages)} pinned packages audited, {len(vulnerable)} vulnerable")
    if unseen:
        print(f"not audited, for this index gives no advisories for them: {', '.join(sorted(unseen)[:8])}, …")
    for each in vulnerable:
        for found in each["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            print(f"{each['name']} {each['version']}: {found['id']}, fixed in {fixed}")
    sys.exit(1 if vulnerable else 2 if unseen and "--strict" in sys.argv[1:] else 0)


if __name__ == "__main__":
    main()
