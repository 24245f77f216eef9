#compdef sigexp
# zsh: eval "$(sigexp completion zsh)"
_sigexp() {
    local found meaning
    local -a open closed
    while IFS=$'\t' read -r found meaning; do
        if [[ $found == *[=.,] ]]; then
            open+=("${found//:/\\:}:$meaning")
        else
            closed+=("${found//:/\\:}:$meaning")
        fi
    done < <(command "${words[1]}" completion --candidates "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)
    if (( ${#open} + ${#closed} )); then
        (( ${#closed} )) && _describe -t words word closed
        (( ${#open} )) && _describe -t settings setting open -S ''
        return 0
    fi
    compset -P '*='
    _files
}
(( ${+functions[compdef]} )) || { autoload -Uz compinit && compinit -u }
compdef _sigexp sigexp
