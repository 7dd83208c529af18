#!/usr/bin/env bash
# Plays a short `minicollab chat` in a real terminal (tmux) and prints the screen: what docs/chat.md
# shows. Run from the checkout: docs/record_chat.sh runs/quickstart
set -euo pipefail
: "${1:?a run folder, or MODEL.gguf --adapter ADAPTER}"
tmux() { command tmux -u -f /dev/null -L minicollab-record "$@"; }
screen() { tmux capture-pane -p -t chat; }

prompts=0
ready() { # waits for the next empty prompt
    prompts=$((prompts + 1))
    until [ "$(screen | grep -c '^>')" -ge "$prompts" ] && [ "$(screen | sed '/^$/d' | tail -n 1)" = ">" ]; do
        tmux has-session -t chat
        sleep 0.2
    done
}
say() { ready; tmux send-keys -t chat -l "$1"; tmux send-keys -t chat Enter; }

trap 'tmux kill-server' EXIT
printf -v chat '%q ' .venv/bin/minicollab chat "$@" --seed 1 --max-tokens 120
tmux new-session -d -s chat -x 96 -y 120 "$chat"
say "Help me write a speech."
say "/compare"
say "/adapter 0.5"
say "/regenerate"
ready
screen | sed '/./,$!d' | sed -e :a -e '/^\n*$/{$d;N;ba' -e '}'
