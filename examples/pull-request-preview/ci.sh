#!/usr/bin/env bash
# usage: ci.sh preview|drift|deploy, with the stack's name in PULUMI_STACK
#   preview  shows what the program would change, and writes comment.md; reaches no gateway and needs no key to one
#   drift    asks the gateways, and fails where they are not what the program declares
#   deploy   makes them so
# drift and deploy log in with the key in SSH_PRIVATE_KEY. The exit code is Pulumi's.
set -euo pipefail
cd "$(dirname "$0")"
stack=${PULUMI_STACK:?is the name of the stack}
shown=(--stack "$stack" --diff --non-interactive --color never --suppress-progress)

preview() {
  local code=0
  pulumi preview "${shown[@]}" >preview.txt 2>&1 || code=$?
  comment "$code" >comment.md
  cat preview.txt
  return "$code"
}

drift() {
  log_in
  pulumi preview "${shown[@]}" --refresh --expect-no-changes
}

deploy() {
  log_in
  pulumi up "${shown[@]}" --yes --skip-preview
}

# the provider's configuration: what the program says of a gateway is kept, and this is stored nowhere
log_in() {
  : "${SSH_PRIVATE_KEY:?is the private key that the gateways accept}"
  CLOUDLET_CONNECTION=$(node -p 'const { SSH_USER: user = "root", SSH_PRIVATE_KEY: privateKey } = process.env; JSON.stringify({ user, privateKey })')
  export CLOUDLET_CONNECTION
  unset SSH_PRIVATE_KEY
}

comment() {
  if (($1 == 0)); then echo "### Preview of \`$stack\`"; else echo "### Preview of \`$stack\` failed"; fi
  printf '\n``````\n'
  shortened preview.txt
  printf '``````\n'
}

# GitHub takes 65,536 characters: of more, the begin and the end, where errors and counts are
shortened() {
  if (($(wc -c <"$1") <= 60000)); then
    cat "$1"
    return
  fi
  head -c 40000 "$1" | sed '$d'
  printf '\n... left out here; the log of the job has all %d lines ...\n\n' "$(wc -l <"$1")"
  tail -c 20000 "$1" | sed 1d
}

case ${1:-} in
preview | drift | deploy) "$1" ;;
*)
  sed -n '2,6s/^# //p' "$0" >&2
  exit 2
  ;;
esac
