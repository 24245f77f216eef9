# fish: sigexp completion fish > ~/.config/fish/completions/sigexp.fish
function __sigexp_complete
    set -l line (commandline --cut-at-cursor --current-process | string collect)
    set -l found (command sigexp completion --candidates "$line" 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path (commandline --current-token)
    end
end
complete --command sigexp --no-files --arguments '(__sigexp_complete)'
