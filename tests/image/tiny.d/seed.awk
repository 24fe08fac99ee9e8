# Reads a NoCloud seed: awk -v seed=FOLDER -v out=FOLDER -f seed.awk
#
# Prints a script that makes a tree that a shell can read: a mapping is a folder, a list one of numbered entries, anything
# else a file. out/meta-data, out/network-config and out/config (vendor-data and user-data, merged by cloud-init's
# rules) are such trees; out/scripts has the scripts by their names; out/errors what was not understood, a line each.
#
# Of YAML it knows what people and programs write into seeds: blocks, flows, quotes, literal and folded text. Not
# anchors, tags, or several documents.

BEGIN {
    document("meta-data", text(seed "/meta-data"), 0)
    document("network-config", text(seed "/network-config"), 0)
    document("config", text(seed "/vendor-data"), 0)
    user_data(text(seed "/user-data"))
    write_tree()
}

function wrong(message) {
    errors = errors message "\n"
}

function text(file,    line, all) {
    while ((getline line <file) > 0)
        all = all line "\n"
    close(file)
    return all
}

# --- user-data and its parts ----------------------------------------------------------------------------------

function user_data(all,    first, boundary, count, lines, i, head, in_head, body, ended) {
    first = all
    sub(/\n.*/, "", first)
    if (first !~ /^Content-Type: multipart\/mixed; boundary="/) {
        part("user-data", "text/plain", "", "", all)
        return
    }
    boundary = first
    sub(/^[^"]*"/, "", boundary)
    sub(/".*/, "", boundary)
    count = split(all, lines, "\n")
    for (i = 1; i <= count && lines[i] != "--" boundary; i++)
        ;
    for (i++; i <= count && !ended; i++) {
        head = body = ""
        for (; i <= count && lines[i] != ""; i++)
            head = head lines[i] "\n"
        for (i++; i <= count && lines[i] != "--" boundary && lines[i] != "--" boundary "--"; i++)
            body = body lines[i] "\n"
        ended = lines[i] == "--" boundary "--"
        # The line break before a boundary belongs to it.
        sub(/\n$/, "", body)
        part(header(head, "filename=\"", "\""), header(head, "Content-Type: ", "[\n;]"), \
            header(head, "Content-Transfer-Encoding: ", "\n"), header(head, "Merge-Type: ", "\n"), body)
    }
}

function header(head, before, after,    at) {
    at = index(head, before)
    if (!at)
        return ""
    head = substr(head, at + length(before))
    sub(after ".*", "", head)
    return head
}

function part(name, type, encoding, merge, body,    file, command) {
    if (encoding == "base64") {
        file = out "/encoded"
        printf "%s", body >file
        close(file)
        command = "base64 -d " file
        body = ""
        while ((command | getline line) > 0)
            body = body line "\n"
        close(command)
    }
    if (body ~ /^[ \t\n]*$/)
        return
    if (type == "text/plain")
        type = body ~ /^#cloud-config[ \t]*\n/ ? "text/cloud-config" : body ~ /^#!/ ? "text/x-shellscript" : "unknown"
    if (type == "text/cloud-config")
        document("config", body, merge ~ /append/)
    else if (type == "text/x-shellscript")
        scripts[name] = body
    else
        wrong("user-data '" name "' is of a kind that is not known here")
}

# --- documents -------------------------------------------------------------------------------------------------

# Puts a document into the tree `place`. Its keys take the place of those that are there, or add to them.
function document(place, all, adding,    i, key) {
    delete new
    delete order
    fresh = 0
    serial++
    count = split(all, L, "\n")
    for (i = 1; i <= count; i++)
        sub(/[ \t\r]+$/, "", L[i])
    at = 1
    skip()
    if (L[at] == "---") {
        at++
        skip()
    }
    if (at <= count)
        block(place, indent(L[at]))
    skip()
    if (at <= count)
        wrong("line not understood in " place ": " L[at])
    merge(place, adding)
}

function merge(place, adding,    i, path, key, rest, known) {
    for (i = 1; i <= fresh; i++) {
        path = order[i]
        key = substr(path, length(place) + 2)
        sub(/\/.*/, "", key)
        if (key == "" || key in known)
            continue
        known[key] = 1
        if (!adding)
            remove(place "/" key)
    }
    for (i = 1; i <= fresh; i++)
        if (!(order[i] in value))
            keep(order[i], new[order[i]])
}

function remove(path,    i) {
    for (i = 1; i <= kept; i++)
        if (all_paths[i] == path || index(all_paths[i], path "/") == 1) {
            delete value[all_paths[i]]
            delete is_folder[all_paths[i]]
        }
}

function keep(path, content) {
    all_paths[++kept] = path
    value[path] = content
    if (path in folder)
        is_folder[path] = 1
}

function set(path, content) {
    if (path in new)
        return
    order[++fresh] = path
    new[path] = content
    delete folder[path]
}

function open(path) {
    set(path, "")
    folder[path] = 1
}

# --- blocks ------------------------------------------------------------------------------------------------------

function indent(line) {
    match(line, /^ */)
    return RLENGTH
}

function skip() {
    while (at <= count && (L[at] == "" || L[at] ~ /^ *#/))
        at++
}

# What begins at the line `at`, which is this far in.
function block(path, depth) {
    if (substr(L[at], depth + 1) ~ /^-( |$)/)
        list(path, depth)
    else if (key_end(substr(L[at], depth + 1)))
        mapping(path, depth)
    else
        scalar(path, substr(L[at], depth + 1), depth - 1)
}

function list(path, depth,    number, rest, entry) {
    open(path)
    for (skip(); at <= count && indent(L[at]) == depth && substr(L[at], depth + 1) ~ /^-( |$)/; skip()) {
        # With the document's number, so that lists of several documents can be put together.
        entry = path "/" sprintf("%02d-%04d", serial, ++number)
        rest = substr(L[at], depth + 2)
        if (rest ~ /^ +(-( |$)|#)/ || key_end(substr(rest, indent(rest) + 1))) {
            L[at] = substr(L[at], 1, depth) " " rest
            block(entry, indent(L[at]))
        } else
            something(entry, substr(rest, indent(rest) + 1), depth)
    }
}

function mapping(path, depth,    line, end, key) {
    open(path)
    for (skip(); at <= count && indent(L[at]) == depth; skip()) {
        line = substr(L[at], depth + 1)
        end = key_end(line)
        if (!end)
            return
        key = unquoted(substr(line, 1, end - 1))
        gsub("/", "%", key)
        line = substr(line, end + 1)
        something(path "/" key, substr(line, indent(line) + 1), depth)
    }
}

# Where the colon behind a key is; 0 where there is no key.
function key_end(line) {
    if (match(line, /^("[^"]*"|'[^']*'|[^]["'#{}&*!|>%@`, -][^#{}]*|-[^ #{}]+) *:( |$)/)) {
        # The first colon that ends a key, not the last.
        if (line ~ /^["']/)
            return RLENGTH - (substr(line, RLENGTH, 1) == " " ? 1 : 0)
        match(line, /:( |$)/)
        return RSTART
    }
    return 0
}

# A value: what is left of the line `at`, or what follows it.
function something(path, rest, depth) {
    if (rest ~ /^#/)
        rest = ""
    if (rest != "") {
        scalar(path, rest, depth)
        return
    }
    at++
    skip()
    if (at <= count && (indent(L[at]) > depth || (indent(L[at]) == depth && substr(L[at], depth + 1) ~ /^-( |$)/ && !in_list(path))))
        block(path, indent(L[at]))
    else
        set(path, "")
}

# An entry of a list has its content further in; a key's list may begin below the key itself.
function in_list(path) {
    return path ~ /\/[0-9][0-9]+-[0-9]+$/
}

function scalar(path, rest, depth) {
    if (rest ~ /^[|>]/)
        set(path, long_text(rest, depth))
    else if (rest ~ /^[[{]/) {
        flow_text = whole(rest, depth)
        flow(path)
        flow_blank()
        if (flow_text != "" && flow_text !~ /^#/)
            wrong("not understood: " flow_text)
    } else if (rest ~ /^["']/)
        set(path, unquoted(whole(rest, depth)))
    else {
        if (rest ~ /^[&*!%@`]/)
            wrong("not understood: " rest)
        sub(/ +#.*/, "", rest)
        for (at++; at <= count && L[at] != "" && indent(L[at]) > depth; at++)
            rest = rest " " substr(L[at], indent(L[at]) + 1)
        set(path, plain(rest))
    }
}

function plain(text) {
    return text == "~" || text == "null" ? "" : text
}

# Lines up to the one that closes what this one opens; folded into one.
function whole(rest, depth) {
    for (at++; at <= count && !closed(rest) && (L[at] == "" || indent(L[at]) > depth); at++)
        rest = rest " " substr(L[at], indent(L[at]) + 1)
    return rest
}

function closed(text,    i, c, quote, open) {
    for (i = 1; i <= length(text); i++) {
        c = substr(text, i, 1)
        if (quote != "") {
            if (c == "\\" && quote == "\"")
                i++
            else if (c == quote)
                quote = ""
        } else if (c == "\"" || c == "'")
            quote = c
        else if (c ~ /[[{]/)
            open++
        else if (c == "]" || c == "}")
            open--
    }
    return quote == "" && open <= 0
}

# Literal or folded text.
function long_text(rest, depth,    folds, chomp, deep, line, all, pending, was, more) {
    folds = rest ~ /^>/
    chomp = rest ~ /^.[0-9]?-/ ? "-" : rest ~ /^.[0-9]?\+/ ? "+" : ""
    if (match(rest, /[0-9]/))
        deep = (depth < 0 ? 0 : depth) + substr(rest, RSTART, 1)
    was = -1
    for (at++; at <= count; at++) {
        if (L[at] == "") {
            pending = pending "\n"
            continue
        }
        if (deep == "")
            deep = indent(L[at])
        if (indent(L[at]) < deep || deep <= depth)
            break
        line = substr(L[at], deep + 1)
        more = line ~ /^ /
        if (was >= 0 && folds && !more && !was)
            all = all (pending == "" ? " " : pending) line
        else
            all = all (was >= 0 ? "\n" : "") pending line
        pending = ""
        was = more
    }
    # The text's last line in `split` is behind the last line break.
    if (at > count)
        sub(/\n$/, "", pending)
    return chomp == "-" ? all : chomp == "+" ? all "\n" pending : all == "" ? "" : all "\n"
}

# --- quotes and flows ----------------------------------------------------------------------------------------------

function unquoted(text,    done, c, i) {
    if (text ~ /^'/) {
        text = substr(text, 2)
        sub(/' *(#.*)?$/, "", text)
        gsub(/''/, "'", text)
        return text
    }
    if (text !~ /^"/) {
        sub(/ +$/, "", text)
        return text
    }
    for (i = 2; i <= length(text); i++) {
        c = substr(text, i, 1)
        if (c == "\"")
            break
        if (c != "\\") {
            done = done c
            continue
        }
        c = substr(text, ++i, 1)
        if (c == "n") done = done "\n"
        else if (c == "t") done = done "\t"
        else if (c == "r") done = done "\r"
        else if (c == "e") done = done "\033"
        else if (c == "x") {
            done = done sprintf("%c", number(substr(text, i + 1, 2)))
            i += 2
        } else if (c == "u" && number(substr(text, i + 1, 4)) < 128) {
            done = done sprintf("%c", number(substr(text, i + 1, 4)))
            i += 4
        } else if (index("\"\\/ ", c))
            done = done c
        else
            wrong("not understood: \\" c)
    }
    return done
}

function number(hex,    i, n) {
    for (i = 1; i <= length(hex); i++)
        n = n * 16 + index("0123456789abcdef", tolower(substr(hex, i, 1))) - 1
    return n
}

function flow_blank() {
    sub(/^ +/, "", flow_text)
}

# The value at the beginning of flow_text, which it takes from there.
function flow(path,    close_by, number, word) {
    flow_blank()
    if (flow_text ~ /^\[/) {
        open(path)
        flow_text = substr(flow_text, 2)
        for (flow_blank(); flow_text != "" && flow_text !~ /^\]/; flow_blank()) {
            flow(path "/" sprintf("%02d-%04d", serial, ++number))
            flow_blank()
            sub(/^,/, "", flow_text)
        }
        flow_text = substr(flow_text, 2)
    } else if (flow_text ~ /^\{/) {
        open(path)
        flow_text = substr(flow_text, 2)
        for (flow_blank(); flow_text != "" && flow_text !~ /^\}/; flow_blank()) {
            word = flow_word(1)
            flow_blank()
            gsub("/", "%", word)
            if (sub(/^:/, "", flow_text))
                flow(path "/" word)
            else
                set(path "/" word, "")
            flow_blank()
            sub(/^,/, "", flow_text)
        }
        flow_text = substr(flow_text, 2)
    } else
        set(path, flow_word(0))
}

function flow_word(is_key,    i, c, word) {
    if (flow_text ~ /^["']/) {
        c = substr(flow_text, 1, 1)
        for (i = 2; i <= length(flow_text) && substr(flow_text, i, 1) != c; i++)
            if (c == "\"" && substr(flow_text, i, 1) == "\\")
                i++
        word = unquoted(substr(flow_text, 1, i))
        flow_text = substr(flow_text, i + 1)
        return word
    }
    for (i = 1; i <= length(flow_text); i++) {
        c = substr(flow_text, i, 1)
        if (index(",]}", c) || (is_key && c == ":" && substr(flow_text, i + 1, 1) ~ /^( |$)/))
            break
    }
    word = substr(flow_text, 1, i - 1)
    flow_text = substr(flow_text, i)
    # Something is taken always, or this would never end.
    if (i == 1 && flow_text !~ /^:/) {
        wrong("not understood: " flow_text)
        flow_text = substr(flow_text, 2)
    }
    sub(/ +$/, "", word)
    return plain(word)
}

# --- the tree --------------------------------------------------------------------------------------------------------

function quoted(text) {
    gsub(/'/, "'\\''", text)
    return "'" text "'"
}

# A script that makes it, for a shell that has mkdir in itself: a program to make it here takes longer than all the rest.
function write_tree(    i, path, name) {
    printf "mkdir -p %s", quoted(out "/scripts")
    for (i = 1; i <= kept; i++)
        if (all_paths[i] in is_folder)
            printf " %s", quoted(out "/" all_paths[i])
    printf "\n"
    for (i = 1; i <= kept; i++) {
        path = all_paths[i]
        if (path in value && !(path in is_folder))
            write_file(path, value[path])
    }
    for (name in scripts)
        write_file("scripts/" name, scripts[name])
    write_file("errors", errors)
}

function write_file(path, content) {
    printf "printf %%s %s >%s\n", quoted(content), quoted(out "/" path)
}
