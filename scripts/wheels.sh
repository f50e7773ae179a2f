# Sourced by setup.sh and setup_peers.sh: where wheels lie on this machine, and whether a CPU
# build of torch is among them.

# Folders with wheels, by comma. uv does not read pip's settings by itself, and stops at a
# folder that is not there, which pip does not mind. $1: an interpreter with pip.
wheel_folders() {
  local links="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}" usable="" folder
  if [ -z "$links" ]; then
    links="$("$1" -m pip config get global.find-links 2>/dev/null || true)"
  fi
  for folder in $(printf '%s' "$links" | tr ',' ' '); do
    if [[ "$folder" == *://* ]] || [ -d "$folder" ]; then usable="$usable${usable:+,}$folder"; fi
  done
  printf '%s\n' "$usable"
}

# Is the CPU build of torch $2 installed for the interpreter $1, or a wheel of it in folders $3?
has_cpu_torch() {
  local folder tag
  "$1" -c "from importlib.metadata import version as v; import sys
sys.exit(v('torch') != '$2+cpu')" 2>/dev/null && return 0
  tag="$("$1" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')"
  while IFS= read -r folder; do
    compgen -G "${folder#file://}/torch-$2+cpu-$tag-*.whl" >/dev/null && return 0
  done < <(printf '%s' "$3" | tr ',' '\n'; printf '\n')
  return 1
}
