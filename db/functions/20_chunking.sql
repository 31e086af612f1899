-- Text to chunks: pure functions of their arguments, no table is read.
--
-- rag.chunk
--   rag._chunk                   checks, strategies, ordinals
--     rag._markdown_outline      joins small sections that belong together
--       rag._markdown_sections   heading paths; what is to be kept in one piece
--         rag._markdown_blocks   line scanner: headings, code, tables, lists, quotes
--     rag._split                 cuts one run of text into chunks of at most size characters
--
-- A strategy is an outline: rows that say where a run of text starts and ends, which headings it
-- stands under and what in it is to be kept in one piece. rag._split does the rest for all.
--
-- Why bytea: substr() on UTF-8 text counts characters from the start of the value, so to read the
-- 70,000 windows of a 50 MB document is quadratic. substr() on bytea copies the slice and nothing
-- else. Places are therefore carried twice: in characters (the contract) and in bytes (the access).

create or replace function rag._whitespace()
    returns text
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        E'\t\n\u000b\f\r\u001c\u001d\u001e\u001f \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004'
        || E'\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000'
$$;

comment on function rag._whitespace() is
    'The characters that Unicode calls white space, in any locale: what is trimmed off chunks.';


create or replace function rag._clinging_marks()
    returns text
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        '\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7'
        || '\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed'
        || '\u0900-\u0903\u093a-\u093c\u093e-\u094f\u0962\u0963\u0981-\u0983\u09bc\u09be-\u09cd'
        || '\u0a01-\u0a03\u0a3c-\u0a4d\u0a81-\u0a83\u0abc\u0abe-\u0acd\u0b01-\u0b03\u0b3c'
        || '\u0b3e-\u0b4d\u0bbe-\u0bcd\u0c00-\u0c04\u0c3e-\u0c4d\u0c81-\u0c83\u0cbc\u0cbe-\u0ccd'
        || '\u0d00-\u0d03\u0d3e-\u0d4d\u0dca-\u0ddf\u0e31\u0e33-\u0e3a\u0e47-\u0e4e\u0eb1'
        || '\u0eb3-\u0ebc\u0ec8-\u0ecd\u0f71-\u0f84\u102b-\u103e\u1160-\u11ff\u17b4-\u17d3'
        || '\u1ab0-\u1aff\u1dc0-\u1dff\u200c\u200d\u20d0-\u20f0\u3099\u309a\ufe00-\ufe0f'
        || '\ufe20-\ufe2f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f\U000e0100-\U000e01ef'
$$;

comment on function rag._clinging_marks() is
    'What belongs to the character before it, to be used in the brackets of a pattern: combining '
    'marks of the living scripts, Hangul vowels and finals, joiners, variation selectors, skin '
    'tones and tags. A cut never comes before one of them.';


create or replace function rag._cut_in_word(word text, size int)
    returns int
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_mark constant text := rag._clinging_marks();
    v_flag constant text := '[\U0001f1e6-\U0001f1ff]';
    v_text constant text collate "C" := left(word, size + 1);
    -- After a joiner comes what it joins: in emoji, and consonants in the scripts of India.
    v_any_character constant text :=
        '^.*[^\u200d\u094d\u09cd\u0a4d\u0acd\u0b4d\u0c4d\u0ccd\u0d4d](?=[^' || v_mark || '])';
    v_cut int;
    v_letters int;
begin
    -- Addresses, JSON and minified code have signs that divide them.
    v_cut := length(substring(v_text from '^.*[-,;:/&|)}>][^-,;:/&|)}>' || v_mark || ']')) - 1;
    if v_cut >= size / 2 then
        return v_cut;
    end if;
    v_cut := coalesce(length(substring(v_text from v_any_character)), size);
    -- A flag is a pair of letters.
    v_letters := length(substring(left(v_text, v_cut) from v_flag || '+$'));
    if v_letters % 2 = 1 and substr(v_text, v_cut + 1, 1) ~ v_flag then
        v_cut := v_cut - 1;
    end if;
    return v_cut;
end
$$;

comment on function rag._cut_in_word(text, int) is
    'Where to cut a word that is longer than a chunk: after a sign, else between two characters '
    'as people see them, at size at the latest.';


create or replace function rag._split(
    content bytea,
    first_offset int,
    last_offset int,
    keep_starts int[],
    keep_ends int[],
    keep_lines boolean[],
    size int,
    overlap int
)
    returns table (start_offset int, end_offset int, body text)
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_spaces constant text := rag._whitespace();
    -- A class of characters is written for use inside brackets. The collation C keeps the meaning
    -- of the patterns the same in every database, and is the fastest.
    v_space constant text :=
        '\s\u001c-\u001f\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000';
    v_mark constant text := rag._clinging_marks();
    -- Two letters before the full stop: "e.g. ", "J. " and "1. " end no sentence, nor does anything
    -- that goes on with a small letter. Takes the first character of the next sentence with it.
    v_sentence constant text :=
        '(?:(?:[^\s.][^\s.0-9]\.|[0-9]{4}\.|[!?…؟۔।])["''”’»)\]*_`]*'
        || '[' || v_space || ']+[^' || v_space || 'a-zß-öø-ÿа-яё]'
        || '|[。！？；][”’」』）]*[^”’」』）' || v_mark || '])';
    -- The last place where text may be cut: paragraph, line that does not just wrap (it ends a
    -- sentence or a bracket, or a list item follows), sentence, line, clause, word.
    v_cuts constant text[] := array[
        '^.*(?:[^:：\s][ \t\r]*\n[ \t\r]*\n|\f)',
        '^.*(?:[.!?;…。！？；|>(){}\[\]]["''”’»*_`]*[ \t\r]*\n'
        || '|\n(?=[ \t]*(?:[-*+•|]|[0-9]{1,3}[.)])[ \t]))',
        '^.*' || v_sentence,
        '^.*\n',
        '^.*[，、：][^' || v_mark || ']',
        '^.*[' || v_space || ']'
    ];
    -- What such a place is worth when it lies at the end of the window; nearer to the start it is
    -- worth less in proportion. So a sentence's end is taken before a paragraph's end only where
    -- that one would leave more than a third of the chunk empty.
    v_worths constant real[] := array[1, 0.9, 0.65, 0.4, 0.3, 0.25];
    -- In code and tables only empty lines and lines count.
    v_code_worths constant real[] := array[1, 0, 0, 0.8, 0, 0.2];
    -- How many characters of the next piece the pattern takes with it.
    v_extras constant int[] := array[0, 0, 1, 0, 1, 0];
    v_first_clause constant text := '^.*?[,;:)–—][' || v_space || ']';
    -- A Markdown heading, or a line underlined as in reStructuredText.
    v_heading constant text := '(?:#{1,6}[ \t][^\n]*|[^\n]+\n[-=~^"]{3,}[ \t\r]*)';
    v_last_headings constant text := '(?:\n\s*' || v_heading || ')+\n\s*$';
    v_only_headings constant text := '^(?:' || v_heading || '\n\s*)+$';
    -- What is read past a window, to see whether it ends at a boundary.
    v_ahead constant int := 8;

    v_bytes constant int := octet_length(content);
    v_keeps constant int := cardinality(keep_starts);
    v_keep int := 1;                    -- the first kept range that ends behind v_cut
    v_next int;
    v_cut int := first_offset;          -- where the new text begins; the overlap stands before it
    v_cut_byte int := 0;
    v_start int;                        -- where the chunk begins
    v_start_byte int;
    v_end int;                          -- where the last chunk ended
    v_end_byte int;
    v_chunk text collate "C";           -- the last chunk
    v_level int := 1;                   -- the kind of place it was cut at
    v_is_code boolean := false;         -- it was cut inside code or a table
    v_may_overlap boolean := false;
    v_may_shorten boolean := true;
    v_window text collate "C";          -- new text: size characters and v_ahead more
    v_text text collate "C";
    v_stop int;
    v_left int;
    v_reach int;
    v_room int;                         -- how many characters of new text the chunk may take
    v_limit int;                        -- where to cut at the latest
    v_floor int;                        -- where something kept ends: a paragraph's end
    v_hold int;                         -- where that starts
    v_best int;
    v_score real;
    v_worth real;
    v_at int;
begin
    while v_cut < last_offset loop
        v_stop := least(v_cut_byte + 4 * (size + v_ahead), v_bytes);
        while v_stop < v_bytes and get_byte(content, v_stop) between 128 and 191 loop
            v_stop := v_stop - 1;
        end loop;
        v_window := left(
            convert_from(substr(content, v_cut_byte + 1, v_stop - v_cut_byte), 'UTF8'),
            size + v_ahead
        );
        v_text := ltrim(v_window, v_spaces);
        if v_text <> v_window then
            v_cut := v_cut + length(v_window) - length(v_text);
            v_cut_byte := v_cut_byte + octet_length(v_window) - octet_length(v_text);
            continue;
        end if;
        v_left := last_offset - v_cut;
        while v_keep <= v_keeps and keep_ends[v_keep] <= v_cut loop
            v_keep := v_keep + 1;
        end loop;

        -- The overlap: whole sentences, in code whole lines. Where there are none and the last
        -- chunk ended inside a paragraph, from a clause or any word. Never more than half of that
        -- chunk, never a part of what was kept in one piece, and never so much that a paragraph or
        -- something to be kept that fits into a chunk would not fit any more.
        v_start := v_cut;
        v_start_byte := v_cut_byte;
        if v_may_overlap then
            v_reach := overlap;
            v_at := strpos(v_window, E'\n\n') - 1;
            if v_at between size - overlap and size then
                v_reach := size - v_at;
            end if;
            if v_left <= size then
                v_reach := least(v_reach, size - v_left);
            end if;
            if v_keep <= v_keeps
                and keep_starts[v_keep] <= v_cut
                and keep_ends[v_keep] - v_cut <= size
            then
                v_reach := least(v_reach, size - (keep_ends[v_keep] - v_cut));
            end if;
            v_reach := least(v_reach - (v_cut - v_end), length(v_chunk) / 2);
            if v_keep > 1
                and v_end - v_reach > keep_starts[v_keep - 1]
                and v_end - v_reach < keep_ends[v_keep - 1]
            then
                v_reach := v_end - keep_ends[v_keep - 1];
            end if;
            if v_reach > 0 then
                v_text := right(v_chunk, v_reach + 1);
                if v_is_code then
                    v_at := length(substring(v_text from '^.*?\n'));
                else
                    v_at := length(substring(v_text from '^.*?' || v_sentence)) - 1;
                    if v_at is null and v_level > 3 then
                        v_at := length(substring(v_text from '^.*?\n'));
                    end if;
                    if v_at is null and v_level >= 3 then
                        v_at := length(substring(v_text from v_first_clause));
                        if v_at is null or v_at > v_reach / 2 then
                            v_at := length(substring(v_text from '^.*?[' || v_space || ']'));
                        end if;
                    end if;
                end if;
                v_text := ltrim(substr(v_text, v_at + 1), v_spaces);
                if v_text <> '' then
                    v_start := v_end - length(v_text);
                    v_start_byte := v_end_byte - octet_length(v_text);
                end if;
            end if;
        end if;
        v_room := size - (v_cut - v_start);

        if v_left <= v_room then
            v_best := v_left;
        else
            -- What is to be kept and fits into a chunk is not cut: the cut goes before it.
            v_limit := v_room;
            v_floor := 0;
            v_hold := 0;
            v_level := 1;
            v_is_code := false;
            v_next := v_keep;
            while v_next <= v_keeps and keep_starts[v_next] < v_cut + v_limit loop
                if keep_ends[v_next] <= v_cut + v_limit then
                    v_hold := keep_starts[v_next] - v_cut;
                    v_floor := keep_ends[v_next] - v_cut;
                elsif keep_ends[v_next] - keep_starts[v_next] > size
                    or keep_starts[v_next] <= v_cut
                then
                    v_floor := greatest(keep_starts[v_next] - v_cut, v_floor);
                    v_is_code := keep_lines[v_next];
                else
                    v_limit := keep_starts[v_next] - v_cut;
                    v_floor := v_limit;
                end if;
                v_next := v_next + 1;
            end loop;
            if v_may_shorten and v_floor < v_limit and v_left - v_limit < size / 8 then
                -- No crumb at the end: what is left for the last chunk is made larger.
                v_at := length(substring(left(v_window, v_left - size / 8) from v_cuts[1]));
                if v_at is null or v_at < v_limit * 6 / 10 then
                    v_at := greatest(v_limit * 6 / 10, v_left - size * 3 / 10);
                end if;
                if v_at > v_floor then
                    v_limit := v_at;
                elsif v_hold >= size / 8 and v_left - v_floor < size / 8 and v_left - v_hold <= size
                then
                    v_limit := v_hold;
                    v_floor := v_hold;
                end if;
            end if;
            v_best := v_floor;
            if v_floor < v_limit then
                v_text := substr(v_window, v_floor + 1, v_limit - v_floor) || coalesce(
                    substring(
                        substr(v_window, v_limit + 1, v_ahead)
                        from '^[' || v_space || ']*[^' || v_space || ']?'
                    ),
                    ''
                );
                v_score := v_floor::real / v_limit;
                for i in 1 .. cardinality(v_cuts) loop
                    exit when v_score >= v_worths[i];
                    continue when v_is_code and v_code_worths[i] = 0;
                    v_at := v_floor + length(substring(v_text from v_cuts[i])) - v_extras[i];
                    -- A heading is not left alone by a cut right behind it.
                    continue when i < 6 and v_at < 250 and left(v_window, v_at) ~ v_only_headings;
                    v_worth := v_at::real / v_limit
                        * case when v_is_code then v_code_worths[i] else v_worths[i] end;
                    if v_worth > v_score then
                        v_best := v_at;
                        v_score := v_worth;
                        v_level := i;
                    end if;
                end loop;
            end if;
            if v_best = v_floor then
                v_is_code := false;
            end if;
            if v_best > v_floor and v_level <= 2 then
                -- Nor is it left at the end of the chunk, away from its text.
                v_at := v_best - length(substring(
                    right(left(v_window, v_best), 200) collate "C" from v_last_headings
                ));
                if v_at > v_limit / 4 then
                    v_best := v_at;
                end if;
            end if;
            if v_best = 0 then
                -- One word fills the window. In the largest window it may fit.
                if v_limit < size then
                    v_may_overlap := false;
                    v_may_shorten := false;
                    continue;
                end if;
                v_level := 7;
                v_best := rag._cut_in_word(v_window, v_limit);
            end if;
        end if;

        v_text := left(v_window, v_best);
        v_chunk := rtrim(v_text, v_spaces);
        v_end := v_cut + length(v_chunk);
        v_end_byte := v_cut_byte + octet_length(v_chunk);
        if v_start < v_cut then
            v_chunk := convert_from(
                substr(content, v_start_byte + 1, v_end_byte - v_start_byte), 'UTF8'
            );
        end if;
        start_offset := v_start;
        end_offset := v_end;
        body := v_chunk;
        return next;

        -- Past the white space, or the next window would have to be read twice.
        v_cut := v_cut + v_best;
        v_cut_byte := v_cut_byte + octet_length(v_text);
        v_text := substr(v_window, v_best + 1, 8);
        v_window := ltrim(v_text, v_spaces);
        v_cut := v_cut + length(v_text) - length(v_window);
        v_cut_byte := v_cut_byte + octet_length(v_text) - octet_length(v_window);
        v_may_overlap := overlap > 0;
        v_may_shorten := true;
    end loop;
end
$$;

comment on function rag._split(
    bytea, int, int, int[], int[], boolean[], int, int
) is
    'Chunks of one run of text, given in UTF-8, that lies at first_offset .. last_offset.';


create or replace function rag._heading_text(line text)
    returns text
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_spaces constant text := rag._whitespace();
    v_raw text collate "C";
    v_text text collate "C";
begin
    v_raw := regexp_replace(line collate "C", '^(?:\ufeff| {0,3})#{1,6}[ \t]+', '');
    v_raw := regexp_replace(v_raw, '[ \t]+#+\s*$', '');
    v_text := v_raw;
    -- Most headings are plain, and the rest costs seven patterns.
    if v_text ~ '[][*_`<{\\]' then
        -- Anchors: {#install}, {/*install*/}.
        v_text := regexp_replace(v_text, '[ \t]*\{(?:#|/\*)[^}]*\}\s*$', '');
        v_text := regexp_replace(v_text, '!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])', '\1', 'g');
        if v_text !~ '`' then
            v_text := regexp_replace(v_text, '</?[A-Za-z][^>]*>', '', 'g');
        end if;
        v_text := regexp_replace(v_text, '\*\*([^*`]+)\*\*', '\1', 'g');
        v_text := regexp_replace(
            v_text, '(^|[^\w\\])([*_]{1,2})([^\s*_`][^*_`]*)\2(?!\w)', '\1\3', 'g'
        );
        v_text := regexp_replace(v_text, '`+', '', 'g');
        v_text := regexp_replace(v_text, '\\([^\w\s])', '\1', 'g');
    end if;
    v_text := btrim(regexp_replace(v_text, '\s+', ' ', 'g'), v_spaces);
    return coalesce(nullif(v_text, ''), btrim(v_raw, v_spaces));
end
$$;

comment on function rag._heading_text(text) is
    'Plain text of a Markdown heading: without its # marks, anchor, links and emphasis.';


create or replace function rag._markdown_blocks(content text)
    returns table (
        kind text,
        level int,
        title text,
        lead_offset int,
        start_offset int,
        end_offset int,
        start_byte int,
        previous_end int
    )
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_line text collate "C";
    v_chars int;
    v_octets int;
    v_kind text;
    v_is_indented boolean;          -- by two columns: belongs to a list item
    v_is_deep boolean;              -- by four columns: code, when nothing else is open
    v_continues boolean;
    v_start int;                    -- where the line starts
    v_start_byte int;
    v_next int := 0;                -- where the next one starts
    v_next_byte int := 0;
    v_end int := 0;                 -- where the last line that is not blank ended
    v_after_blank boolean := true;
    v_block text;                   -- what is open: paragraph, code, table, list, quote
    v_block_start int;
    v_block_byte int;
    v_block_lead int;
    v_block_previous int;           -- v_end before it
    v_lines int;                    -- of the open paragraph
    v_paragraph text collate "C";   -- its text, as long as it may still become a heading
    v_last text collate "C";        -- its last line
    v_last_start int;
    v_lead int;                     -- where what introduces the next block starts
    v_fence text;                   -- what ends verbatim text: ```, ~~~~, </pre>, -->
    v_fence_start int;
    v_fence_lead int;
    v_head text collate "C" := left(content, 8000);
    v_front int := 0;
begin
    if v_head ~ '^\ufeff?(?:---|\+\+\+)[ \t\r]*\n[ \t]*[-\w#"''][^\n]*[:=]' then
        v_front := regexp_instr(v_head, '\n(?:---|\.\.\.|\+\+\+)[ \t\r]*(?:\n|$)', 5, 1, 1) - 1;
    end if;
    if v_front > 0 then
        kind := 'code';
        start_offset := 0;
        end_offset := v_front;
        return next;
    end if;

    for v_line, v_chars, v_octets, v_kind, v_is_indented, v_is_deep in
        select
            l.line,
            length(l.line),
            octet_length(l.line),
            -- Most lines are told by their first sign; each further pattern takes 0.1 to 0.2 us.
            case
                when l.line !~ '^\s*(?:[-#=~`*+0-9|:><\ufeff]|$)' then 'text'
                when l.line ~ '^\s*$' then 'blank'
                when l.line ~ '^[ \t]*(?:`{3,}[^`]*|~{3,}.*)$' then 'fence'
                when l.line ~ '^(?:\ufeff| {0,3})#{1,6}[ \t]+(?!#+\s*$)\S' and length(l.line) <= 500
                    then 'heading'
                when l.line ~ '^ {0,3}=+\s*$' then 'equals'
                when l.line ~ '^ {0,3}-+\s*$' then 'dashes'
                when l.line ~ '^[ \t]*(?:[-*+]|1[.)])(?:[ \t]|$)' then 'item'
                when l.line ~ '^[ \t]*[0-9]{1,9}[.)][ \t]' then 'number'
                when l.line ~ '^ {0,3}\|' then 'row'
                when l.line ~ '^ {0,3}:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)+\|?\s*$' then 'rule'
                when l.line ~ '^ {0,3}>' then 'quote'
                when l.line ~ '^ {0,3}<(?:pre|script|style|!--)' then 'raw'
                else 'text'
            end,
            l.line ~ '^(?:  | ?\t)',
            l.line ~ '^(?:    | {0,3}\t)'
        from (
            select s.line collate "C" as line
            from string_to_table(content, E'\n') as s (line)
        ) as l
        union all
        select '', 0, 0, 'end', false, false
    loop
        v_start := v_next;
        v_start_byte := v_next_byte;
        v_next := v_start + v_chars + 1;
        v_next_byte := v_start_byte + v_octets + 1;

        if v_kind = 'blank' then
            v_after_blank := true;
            continue;
        end if;
        if v_start < v_front and v_kind <> 'end' then
            v_end := v_start + v_chars;
            continue;
        end if;
        if v_fence is not null then
            if v_kind = 'end' then
                v_continues := false;
            elsif v_fence ~ '^[`~]' then
                v_end := v_start + v_chars;
                v_continues := v_kind <> 'fence'
                    or ltrim(btrim(v_line, E' \t\r'), left(v_fence, 1)) <> ''
                    or strpos(v_line, v_fence) = 0;
            else
                v_end := v_start + v_chars;
                v_continues := strpos(v_line, v_fence) = 0;
            end if;
            if v_continues then
                continue;
            end if;
            kind := 'code';
            lead_offset := v_fence_lead;
            start_offset := v_fence_start;
            end_offset := v_end;
            return next;
            v_fence := null;
            v_after_blank := false;
            if v_kind <> 'end' then
                continue;
            end if;
        end if;

        v_continues := case v_block
            when 'paragraph' then
                not v_after_blank and (
                    v_kind in ('text', 'number', 'rule')
                    or v_is_deep
                    or v_kind in ('equals', 'dashes')
                        and v_lines <= 3
                        and length(v_paragraph) <= 500
                )
            when 'list' then
                v_kind in ('item', 'number')
                or v_is_indented
                or not v_after_blank and v_kind in ('text', 'row', 'rule', 'quote', 'equals')
            when 'code' then v_is_deep
            when 'table' then not v_after_blank and strpos(v_line, '|') > 0
            when 'quote' then not v_after_blank and v_kind in ('quote', 'text')
            else false
        end;

        if v_continues then
            if v_block = 'paragraph' then
                if v_kind in ('equals', 'dashes') and not v_is_deep then
                    -- Setext heading: the paragraph was its text.
                    kind := 'heading';
                    level := case v_kind when 'equals' then 1 else 2 end;
                    title := rag._heading_text(v_paragraph);
                    start_offset := v_block_start;
                    start_byte := v_block_byte;
                    end_offset := v_start + v_chars;
                    previous_end := v_block_previous;
                    return next;
                    v_lead := v_block_start;
                    v_block := null;
                elsif v_kind = 'rule' and strpos(v_last, '|') > 0 then
                    -- The line before was the head of a table.
                    if v_lines > 1 then
                        v_block_start := v_last_start;
                        v_block_lead := null;
                    end if;
                    v_block := 'table';
                else
                    v_lines := v_lines + 1;
                    if v_lines <= 3 then
                        v_paragraph := v_paragraph || ' ' || v_line;
                    end if;
                    v_last := v_line;
                    v_last_start := v_start;
                end if;
            elsif v_kind = 'fence' and v_block = 'list' then
                v_fence := substring(v_line from '`{3,}|~{3,}');
                v_fence_start := v_start;
                v_fence_lead := null;
            end if;
        else
            if v_block = 'paragraph' then
                -- "For example:" and <Note> stay with what they introduce.
                v_lead := case
                    when v_last ~ '[:：][*_`]*\s*$' or v_last ~ '^\s*<[A-Za-z][^>]*[^/>]>\s*$'
                        then coalesce(v_block_lead, v_block_start)
                end;
            elsif v_block is not null then
                kind := v_block;
                lead_offset := v_block_lead;
                start_offset := v_block_start;
                end_offset := v_end;
                return next;
            end if;

            v_block_start := v_start;
            v_block_byte := v_start_byte;
            v_block_previous := v_end;
            v_block_lead := v_lead;
            v_block := case
                when v_kind in ('heading', 'equals', 'dashes', 'fence', 'end') then null
                when v_is_deep then 'code'
                when v_kind in ('item', 'number') then 'list'
                when v_kind = 'row' then 'table'
                when v_kind = 'quote' then 'quote'
                when v_kind = 'raw' then null
                else 'paragraph'
            end;
            v_lead := null;
            if v_block = 'paragraph' then
                v_lines := 1;
                v_paragraph := v_line;
                v_last := v_line;
                v_last_start := v_start;
            elsif v_kind = 'heading' then
                kind := 'heading';
                level := length(substring(v_line from '#+'));
                title := rag._heading_text(v_line);
                start_offset := v_start;
                start_byte := v_start_byte;
                end_offset := v_start + v_chars;
                previous_end := v_end;
                return next;
                v_lead := v_start;
            elsif v_kind in ('fence', 'raw') and v_block is null then
                v_fence := coalesce(
                    substring(v_line from '`{3,}|~{3,}'),
                    '</' || substring(v_line from '<(pre|script|style)') || '>',
                    '-->'
                );
                v_fence_start := v_start;
                v_fence_lead := v_block_lead;
                if v_kind = 'raw' and strpos(v_line, v_fence) > 0 then
                    v_fence := null;
                end if;
            elsif v_kind = 'end' then
                kind := 'end';
                start_offset := v_start;
                start_byte := v_start_byte;
                previous_end := v_end;
                return next;
            end if;
        end if;
        v_after_blank := false;
        v_end := v_start + v_chars;
    end loop;
end
$$;

comment on function rag._markdown_blocks(text) is
    'The headings of a Markdown text, what in it should stay in one piece, and its end. '
    'lead_offset: where the line that introduces a block starts; previous_end: where the text '
    'before a heading ends.';


create or replace function rag._markdown_sections(content text, size int)
    returns table (
        start_offset int,
        end_offset int,
        start_byte int,
        end_byte int,
        first_path text[],
        heading_path text[],
        keep_starts int[],
        keep_ends int[],
        keep_lines boolean[]
    )
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_block record;
    v_levels int[] := '{}';
    v_level int := 7;               -- of the section's first heading
    v_body int := 0;                -- where the text under its last heading starts
    v_continues boolean;
    v_lead int;
    v_start int;
begin
    start_offset := 0;
    start_byte := 0;
    first_path := '{}';
    heading_path := '{}';
    keep_starts := '{}';
    keep_ends := '{}';
    keep_lines := '{}';
    for v_block in
        select b.*
        from rag._markdown_blocks(content) as b
        order by b.start_offset, b.end_offset desc
    loop
        if v_block.kind in ('heading', 'end') then
            end_offset := v_block.previous_end;
            end_byte := v_block.start_byte;
            v_continues := v_block.kind = 'heading'
                and v_block.level >= v_level
                and end_offset <= v_body;
            if not v_continues and end_offset > start_offset then
                return next;
            end if;
            exit when v_block.kind = 'end';
            while v_levels[cardinality(v_levels)] >= v_block.level loop
                v_levels := trim_array(v_levels, 1);
                heading_path := trim_array(heading_path, 1);
            end loop;
            v_levels := v_levels || v_block.level;
            heading_path := heading_path || v_block.title;
            v_body := v_block.end_offset;
            continue when v_continues;
            first_path := heading_path;
            v_level := v_block.level;
            start_offset := v_block.start_offset;
            start_byte := v_block.start_byte;
            keep_starts := '{}';
            keep_ends := '{}';
            keep_lines := '{}';
            continue;
        end if;

        -- With the line that introduces it, if both fit. A heading is not left alone even where
        -- they do not: what stands right under it is then cut, like what is too long by itself.
        v_lead := case
            when v_block.lead_offset < v_body then start_offset
            else v_block.lead_offset
        end;
        v_start := case
            when v_lead < keep_ends[cardinality(keep_ends)] then v_block.start_offset
            when v_block.end_offset - v_lead <= size then v_lead
            when v_lead < v_body and v_block.start_offset - v_body < 10 then v_lead
            else v_block.start_offset
        end;
        -- Code inside a list that is kept is kept with it. A list or quote too long to be kept is
        -- cut like any text; code and tables are then cut at their lines.
        continue when v_start < keep_ends[cardinality(keep_ends)];
        continue when v_block.kind in ('list', 'quote') and v_block.end_offset - v_start > size;
        keep_starts := array_append(keep_starts, v_start);
        keep_ends := array_append(keep_ends, v_block.end_offset);
        keep_lines := array_append(keep_lines, v_block.kind in ('code', 'table'));
    end loop;
end
$$;

comment on function rag._markdown_sections(text, int) is
    'The sections of a Markdown text, each from a heading to the next; headings with nothing under '
    'them belong to the section that follows. With the headings above the first and the last of '
    'them, and the ranges to keep in one piece.';


create or replace function rag._are_near(path text[], follower text[])
    returns boolean
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        follower[:cardinality(path)] = path
        or cardinality(path) > 1
            and follower[:cardinality(path) - 1] = path[:cardinality(path) - 1]
$$;

comment on function rag._are_near(text[], text[]) is
    'Whether a section lies under another one, or with it under the same heading.';


create or replace function rag._markdown_outline(content text, size int)
    returns table (
        start_offset int,
        end_offset int,
        start_byte int,
        end_byte int,
        heading_path text[],
        next_offset int,
        next_path text[],
        keep_starts int[],
        keep_ends int[],
        keep_lines boolean[]
    )
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_variable
declare
    -- Below 100 characters there is a heading and a sentence: no passage that answers a question.
    -- A section of a third of a chunk or more is left alone, so that a passage has one subject.
    v_tiny constant int := least(100, size / 3);
    v_small constant int := size / 3;
    v_section record;
    v_length int;
    v_run record;               -- the sections joined so far
    v_run_length int;
    v_is_near boolean;
    v_first_path text[];        -- of the run in the columns of the result
begin
    -- The columns of the result hold the run before v_run: it may yet take up a tiny follower.
    for v_section in
        select
            s.*,
            null::int as next_offset,
            null::text[] as next_path
        from rag._markdown_sections(content, size) as s
        union all
        select null, null, null, null, null, null, null, null, null, null, null
    loop
        if v_run_length is not null then
            v_length := v_section.end_offset - v_section.start_offset;
            v_is_near := rag._are_near(v_run.first_path, v_section.first_path);
            if v_is_near and v_run_length < v_tiny
                or v_is_near and greatest(v_run_length, v_length) < v_small
                    and v_section.end_offset - v_run.start_offset <= size
            then
                if v_section.end_offset - v_run.start_offset > size then
                    v_run.next_offset := v_section.start_offset;
                    v_run.next_path := v_section.heading_path;
                elsif v_run.first_path = '{}' or v_run_length < v_tiny and v_length >= v_tiny then
                    v_run.heading_path := v_section.heading_path;
                elsif v_run_length < v_tiny or v_length >= v_tiny then
                    -- Those they share.
                    while v_run.heading_path
                        <> v_section.heading_path[:cardinality(v_run.heading_path)]
                    loop
                        v_run.heading_path := trim_array(v_run.heading_path, 1);
                    end loop;
                end if;
                if v_run.first_path = '{}' then
                    v_run.first_path := v_section.first_path;
                end if;
                v_run.end_offset := v_section.end_offset;
                v_run.end_byte := v_section.end_byte;
                v_run.keep_starts := v_run.keep_starts || v_section.keep_starts;
                v_run.keep_ends := v_run.keep_ends || v_section.keep_ends;
                v_run.keep_lines := v_run.keep_lines || v_section.keep_lines;
                v_run_length := v_run.end_offset - v_run.start_offset;
                continue;
            end if;

            if v_run_length < v_tiny
                and v_first_path <> '{}'
                and rag._are_near(v_first_path, v_run.first_path)
                and next_offset is null
                and (v_run.end_offset - start_offset <= size or end_offset - start_offset > size)
            then
                next_offset := v_run.start_offset;
                next_path := v_run.heading_path;
                end_offset := v_run.end_offset;
                end_byte := v_run.end_byte;
            else
                if start_offset is not null then
                    return next;
                end if;
                v_first_path := v_run.first_path;
                start_offset := v_run.start_offset;
                end_offset := v_run.end_offset;
                start_byte := v_run.start_byte;
                end_byte := v_run.end_byte;
                heading_path := v_run.heading_path;
                next_offset := v_run.next_offset;
                next_path := v_run.next_path;
                keep_starts := v_run.keep_starts;
                keep_ends := v_run.keep_ends;
                keep_lines := v_run.keep_lines;
            end if;
        end if;
        v_run := v_section;
        v_run_length := v_run.end_offset - v_run.start_offset;
    end loop;
    if start_offset is not null then
        return next;
    end if;
end
$$;

comment on function rag._markdown_outline(text, int) is
    'The sections of a Markdown text, tiny ones joined with what follows and runs of small ones '
    'under the same heading with each other. heading_path are the headings of what lies before '
    'next_offset, next_path those of what lies behind it.';


create or replace function rag._chunk(content text, strategy text, size int, overlap int)
    returns table (
        ordinal int,
        body text,
        start_offset int,
        end_offset int,
        heading_path text[]
    )
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- A plan made for the parameters at hand would hold one more copy of the document.
    set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_variable
declare
    v_spaces constant text := rag._whitespace();
    v_text text;
    v_bytes bytea;
    v_start_byte int;
    v_end_byte int;
    v_part bytea;
    v_length int;
    v_reach int := 1000;
    v_any_heading constant text :=
        '(?n)^(?:\ufeff| {0,3})#{1,6}[ \t]|^ {0,3}(?:=+|-+)[ \t\r]*$';
    v_run record;
begin
    if strategy is null or strategy not in ('recursive', 'markdown', 'none') then
        raise exception 'unknown chunking strategy'
            using
                errcode = '22023',
                detail = format('strategy is %L', strategy),
                hint = 'The strategies are recursive, markdown and none.';
    end if;
    if size is null or size not between 50 and 100000 then
        raise exception 'chunk size out of range'
            using
                errcode = '22023',
                detail = format('size is %s', coalesce(size::text, 'null')),
                hint = 'Give a size of 50 to 100000 characters; 500 to 1000 suits most models.';
    end if;
    if overlap is null or overlap < 0 or overlap >= size / 2.0 then
        raise exception 'chunk overlap out of range'
            using
                errcode = '22023',
                detail = format('overlap is %s, size is %s', coalesce(overlap::text, 'null'), size),
                hint = 'Give an overlap of 0 or more characters, less than half of the size.';
    end if;

    if content is null then
        return;
    end if;
    -- A stored text is compressed, and each look at it would unpack it anew: 0.2 s for 50 MB.
    content := content || '';

    -- Where the text without the white space around it lies. It is looked for in windows, because
    -- btrim() of a whole text takes 12 bytes of memory per character.
    v_length := length(content);
    loop
        v_text := ltrim(left(content, v_reach), v_spaces);
        exit when v_text <> '' or v_reach >= v_length;
        v_reach := v_reach * 8;
    end loop;
    if v_text = '' then
        return;
    end if;
    start_offset := least(v_reach, v_length) - length(v_text);
    v_reach := 1000;
    loop
        v_text := rtrim(right(content, v_reach), v_spaces);
        exit when v_text <> '';
        v_reach := v_reach * 8;
    end loop;
    end_offset := v_length - least(v_reach, v_length) + length(v_text);
    ordinal := 0;
    heading_path := '{}';

    if strategy = 'none'
        or end_offset - start_offset <= size
        and (strategy = 'recursive' or content !~ v_any_heading)
    then
        body := substr(content, start_offset + 1, end_offset - start_offset);
        return next;
        return;
    end if;

    v_bytes := convert_to(content, 'UTF8');
    v_start_byte := octet_length(left(content, start_offset));
    v_end_byte := octet_length(v_bytes) - octet_length(right(content, v_length - end_offset));
    for v_run in
        select
            start_offset as start_offset,
            end_offset as end_offset,
            v_start_byte as start_byte,
            v_end_byte as end_byte,
            '{}'::text[] as heading_path,
            null::int as next_offset,
            null::text[] as next_path,
            '{}'::int[] as keep_starts,
            '{}'::int[] as keep_ends,
            '{}'::boolean[] as keep_lines
        where strategy = 'recursive'
        union all
        select o.*
        from rag._markdown_outline(content, size) as o
        where strategy = 'markdown'
    loop
        -- A variable of its own, because a query that a loop reads from copies its parameters: of
        -- v_bytes it would copy the whole document for every run.
        v_part := substr(v_bytes, v_run.start_byte + 1, v_run.end_byte - v_run.start_byte);
        if v_run.end_offset - v_run.start_offset <= size then
            v_text := convert_from(v_part, 'UTF8');
            body := ltrim(v_text, v_spaces);
            start_offset := v_run.start_offset + length(v_text) - length(body);
            body := rtrim(body, v_spaces);
            end_offset := start_offset + length(body);
            heading_path := v_run.heading_path;
            return next;
            ordinal := ordinal + 1;
            continue;
        end if;
        for start_offset, end_offset, body in
            select p.start_offset, p.end_offset, p.body
            from rag._split(
                v_part,
                v_run.start_offset,
                v_run.end_offset,
                v_run.keep_starts,
                v_run.keep_ends,
                v_run.keep_lines,
                size,
                overlap
            ) as p
        loop
            -- A chunk has the headings of its middle.
            heading_path := case
                when (start_offset + end_offset) / 2 >= v_run.next_offset then v_run.next_path
                else v_run.heading_path
            end;
            return next;
            ordinal := ordinal + 1;
        end loop;
    end loop;
end
$$;

comment on function rag._chunk(text, text, int, int) is
    'rag.chunk under column names that PL/pgSQL can tell from the parameters.';


create or replace function rag.chunk(
    content text,
    strategy text default 'recursive',
    size int default 800,
    overlap int default 100
)
    returns table (
        ordinal int,
        content text,
        start_offset int,
        end_offset int,
        heading_path text[]
    )
    language sql
    immutable
    parallel safe
    security definer            -- so that who may call it needs no right to its private parts
    set search_path = pg_catalog, public, pg_temp
as $$
    -- By number, because a column of the result has the parameter's name. The collation makes it
    -- work, and the same, for text of any collation.
    select c.ordinal, c.body, c.start_offset, c.end_offset, c.heading_path
    from rag._chunk($1 collate "C", $2, $3, $4) as c
$$;

comment on function rag.chunk(text, text, int, int) is
    'Cuts a text into chunks of at most size characters. '
    'Strategies: recursive (at paragraphs, else lines that do not just wrap, sentences, words), '
    'markdown (the same inside sections, with the headings above each chunk; code, tables and '
    'lists stay in one piece where they fit into size; small sections under one heading are '
    'joined) and none (one chunk, whatever size says). '
    'Offsets count characters from 0: content is substr(text, start_offset + 1, end_offset - '
    'start_offset). A chunk may begin up to overlap characters before the end of the chunk before '
    'it, at a sentence or line, or, inside a paragraph, at a word; never in another section. '
    'White space around a chunk belongs to none; every other character is in a chunk. A word is '
    'only cut where it is longer than size. Null or blank text has no chunks; size is 50 to '
    '100000, overlap less than half of it, or 22023 is raised.';
