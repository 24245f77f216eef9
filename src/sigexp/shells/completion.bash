# bash: eval "$(sigexp completion bash)"
_sigexp_complete() {
    local line=${COMP_LINE:0:COMP_POINT} word cut="" found
    word=${line##*[[:space:]]}
    # Where = and : break words, bash completes what stands behind the last of them alone.
    [[ $COMP_WORDBREAKS == *=* ]] && cut=${word%"${word##*[=:]}"}
    COMPREPLY=()
    while IFS=$'\t' read -r found _; do
        COMPREPLY+=("${found#"$cut"}")
        case $found in *[=.,]) compopt -o nospace 2>/dev/null ;; esac
    done < <(command "${COMP_WORDS[0]}" completion --candidates "$line" 2>/dev/null)
}
complete -o default -F _sigexp_complete sigexp
