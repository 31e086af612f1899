-- What rag.chunk makes of texts: where it cuts, where it must not, what it keeps of headings.
-- Real documents and random texts are in tests/test_chunking.py.

begin;
select plan(105);

-- The chunks as an array, in their order.
create function pg_temp.chunks(
    content text, strategy text default 'recursive', size int default 100, overlap int default 0
)
    returns text[]
    language sql
    immutable
as $$
    select array_agg(c.content order by c.ordinal)
    from rag.chunk($1, $2, $3, $4) as c
$$;

-- Headings and first line of each chunk: 'Guide / Install: Run make.'
create function pg_temp.outline(content text, size int default 100)
    returns text[]
    language sql
    immutable
as $$
    select
        array_agg(
            array_to_string(c.heading_path, ' / ') || ': ' || split_part(c.content, E'\n', 1)
            order by c.ordinal
        )
    from rag.chunk($1, 'markdown', $2, 0) as c
$$;

-- n words that make no sentence.
create function pg_temp.words(word text, n int)
    returns text
    language sql
    immutable
as $$
    select string_agg(word || i.i, ' ' order by i.i)
    from generate_series(1, n) as i (i)
$$;

-- Nothing to cut -------------------------------------------------------------------------------

select is_empty($$ select * from rag.chunk(null) $$, 'null has no chunks');
select is_empty($$ select * from rag.chunk('') $$, 'an empty text has no chunks');
select is_empty(
    $$
        select s.strategy, c.*
        from unnest(array['recursive', 'markdown', 'none']) as s (strategy)
        cross join rag.chunk(E' \n\r\n\t\f\u00a0\u2003\u2028\u3000\u0085\u001c ', s.strategy) as c
    $$,
    'white space of any kind alone has no chunks'
);
select is_empty($$ select * from rag.chunk(repeat(' ', 5000)) $$, 'nor have 5,000 spaces');
select results_eq(
    $$ select * from rag.chunk(E'\n\n  One, two.\t\r\n') $$,
    $$ values (0, 'One, two.', 4, 13, '{}'::text[]) $$,
    'a short text is one chunk, without the white space around it'
);
select results_eq(
    $$ select c.* from rag.chunk(repeat(' ', 3000) || 'x' || repeat(E'\n', 3000)) as c $$,
    $$ values (0, 'x', 3000, 3001, '{}'::text[]) $$,
    'much white space around a short text is none of it'
);
select results_eq(
    $$
        select c.ordinal, c.start_offset, c.end_offset
        from rag.chunk(repeat('a b ', 9), 'none', 50, 0) as c
    $$,
    $$ values (0, 0, 35) $$,
    'none: one chunk, without the white space around it'
);
select is(
    (select array_agg(length(c.content)) from rag.chunk(repeat('a b ', 9999), 'none', 50, 0) as c),
    array[39995],
    'none: whatever size says'
);
select results_eq(
    $$ select * from rag.chunk('one word') $$,
    $$ select * from rag.chunk('one word', 'recursive', 800, 100) $$,
    'recursive, 800 and 100 are the defaults'
);

-- What is refused ------------------------------------------------------------------------------

select throws_ok(
    format('select * from rag.chunk(%L, %s)', 'text', t.arguments),
    '22023', null,
    t.arguments
)
from (values
    ('''Markdown'''), ('''semantic'''), (''''''), ('null'),
    ('''recursive'', 49, 0'), ('''recursive'', 100001, 0'), ('''recursive'', null, 0'),
    ('''recursive'', 800, -1'), ('''recursive'', 800, 400'), ('''recursive'', 51, 26'),
    ('''recursive'', 800, null'), ('''none'', 0, 0')
) as t (arguments);
select lives_ok(
    $$ select rag.chunk('text', 'recursive', 51, 25), rag.chunk('text', 'none', 100000, 0) $$,
    'the bounds themselves are allowed'
);

create function pg_temp.refusal(statement text, out detail text, out hint text)
    language plpgsql
as $$
begin
    execute statement;
exception
    when invalid_parameter_value then
        get stacked diagnostics detail = pg_exception_detail, hint = pg_exception_hint;
end
$$;

select results_eq(
    $$ select * from pg_temp.refusal('select rag.chunk(''text'', ''semantic'')') $$,
    $$
        values (
            'strategy is ''semantic''',
            'The strategies are recursive, markdown, token, sentence, code and none.'
        )
    $$,
    'who asks for an unknown strategy is told the known ones'
);

-- Recursive: paragraph, line, sentence, word ---------------------------------------------------

select is(
    pg_temp.chunks(
        pg_temp.words('one', 12) || E'\n\n' || pg_temp.words('two', 12) || E'\n \t\n\n'
        || pg_temp.words('three', 8)
    ),
    array[pg_temp.words('one', 12), pg_temp.words('two', 12), pg_temp.words('three', 8)],
    'a text is cut at its paragraphs'
);
select is(
    pg_temp.chunks(
        E'First.\n\nSecond.\n\n' || pg_temp.words('word', 12) || E'\n\n'
        || pg_temp.words('long', 14)
    ),
    array[
        E'First.\n\nSecond.\n\n' || pg_temp.words('word', 12),
        pg_temp.words('long', 14)
    ],
    'paragraphs share a chunk while they fit'
);
select is(
    pg_temp.chunks(
        E'here is a sentence that is quite long and\nit wraps, until it ends. The second one is\n'
        || E'longer than that one, it goes on and on\nfor a while and then some.'
    ),
    array[
        E'here is a sentence that is quite long and\nit wraps, until it ends.',
        E'The second one is\nlonger than that one, it goes on and on\nfor a while and then some.'
    ],
    'lines that only wrap are not cut where a sentence ends'
);
select is(
    pg_temp.chunks(
        E'milk and honey from the market\neggs\nbread of the day before\npotatoes, two pounds\n'
        || E'a bottle of water\nsoap'
    ),
    array[
        E'milk and honey from the market\neggs\nbread of the day before',
        E'potatoes, two pounds\na bottle of water\nsoap'
    ],
    'lines without sentences are not torn'
);
select is(
    pg_temp.chunks(
        E'- the first item, which goes on\n  in a second line. It ends\n'
        || E'- the second item. It is not\n  very long, but long enough'
    ),
    array[
        E'- the first item, which goes on\n  in a second line. It ends',
        E'- the second item. It is not\n  very long, but long enough'
    ],
    'list items are kept before the sentences in them'
);
select is(
    pg_temp.chunks(
        'We met Mrs. ames, J. Doe, e.g. at No. 5, in 2001. And then, i.e. Later on, we met again '
        || 'at half past 3 p.m. with others. It was nice.'
    ),
    array[
        'We met Mrs. ames, J. Doe, e.g. at No. 5, in 2001.',
        'And then, i.e. Later on, we met again at half past 3 p.m. with others. It was nice.'
    ],
    'a full stop alone is no end of a sentence'
);
select is(
    pg_temp.chunks(pg_temp.words('word', 24)),
    array[
        'word1 word2 word3 word4 word5 word6 word7 word8 word9 word10 word11 word12 word13 word14 '
        || 'word15',
        'word16 word17 word18 word19 word20 word21 word22 word23 word24'
    ],
    'what has no sentences is cut between words'
);
select cmp_ok(
    length((pg_temp.chunks(rpad('', 104, 'ab ')))[2]), '>=', 25,
    'the last chunk is no crumb'
);
select is(
    pg_temp.chunks(rpad('', 80, 'a b ') || E'\n\nSee the list:\n\n' || rpad('', 60, 'c d ')),
    array[rpad('', 79, 'a b '), E'See the list:\n\n' || rpad('', 59, 'c d ')],
    'what ends with a colon stays with what it announces'
);
select is(
    pg_temp.chunks(
        rpad('', 60, 'a b ') || E'.\n\nTitle\n-----\n\n' || rpad('', 60, 'c d ')
    ),
    array[rpad('', 60, 'a b ') || '.', E'Title\n-----\n\n' || rpad('', 59, 'c d ')],
    'a heading is not left at the end of a chunk, in plain text either'
);
select is(
    pg_temp.chunks(
        E'One line.\r\nTwo lines.\r\n\r\n' || pg_temp.words('three', 12) || E'\r\n\r\nEnd.\r\n'
    ),
    array[E'One line.\r\nTwo lines.', pg_temp.words('three', 12) || E'\r\n\r\nEnd.'],
    'lines may end with CR LF'
);
select is(
    pg_temp.chunks(repeat(E'\tcol1\tcol2\tcol3\n', 12)),
    array[
        substr(repeat(E'\n\tcol1\tcol2\tcol3', 6), 3), substr(repeat(E'\n\tcol1\tcol2\tcol3', 6), 3)
    ],
    'tabs are white space; a chunk begins with its first word'
);
select is(
    pg_temp.chunks(rpad('', 90, 'page one ') || E'\f' || rpad('', 45, 'page two ')),
    array[rpad('', 89, 'page one '), rpad('', 44, 'page two ')],
    'a form feed ends a paragraph'
);

-- Words longer than a chunk --------------------------------------------------------------------

select is(
    pg_temp.chunks(repeat('x', 250)),
    array[repeat('x', 100), repeat('x', 100), repeat('x', 50)],
    'a word longer than size is cut at size'
);
select is(
    pg_temp.chunks(rpad('', 60, 'aaa ') || repeat('y', 98) || ' zzz', 'recursive', 100, 49),
    array[rpad('', 59, 'aaa '), repeat('y', 98), 'zzz'],
    'a word that fits is not cut, though the overlap has to go'
);
select is(
    pg_temp.chunks(
        'https://example.org/a/long/path/to/some/document/that/is/longer/than/a/chunk/can/be/in/'
        || 'this/test?with=a&query=string'
    ),
    array[
        'https://example.org/a/long/path/to/some/document/that/is/longer/than/a/chunk/can/be/in/'
        || 'this/',
        'test?with=a&query=string'
    ],
    'an address is cut after a sign'
);
select is(
    pg_temp.chunks(t.text || repeat(t.piece, 60), 'recursive', 50),
    (
        -- as many whole pieces as fit
        select
            array_agg(
                case i.i when 0 then t.text else '' end
                || repeat(t.piece, least(t.fits, 60 - i.i * t.fits)) order by i.i
            )
        from generate_series(0, (60 - 1) / t.fits) as i (i)
    ),
    t.name
)
from (values
    ('a family is one emoji', '', '👩‍👩‍👧‍👦', 7),
    ('a flag is two letters', '', '🇩🇪', 25),
    ('a skin tone stays with its hand', '', '👍🏽', 25),
    ('an emoji keeps its variation selector', '', E'\u2764\ufe0f', 25),
    ('accents stay on their letter', '', E'e\u0301\u0323', 16),
    ('a Hangul syllable may be three letters', '', E'\u1112\u1161\u11ab', 16),
    ('a Hindi conjunct is one', '', 'स्ते', 12),
    ('Thai vowels stay with their consonant', '', 'กิ่', 16),
    ('Arabic vowels stay with their consonant', '', E'\u0628\u064e\u0651', 16)
) as t (name, text, piece, fits);

-- Other scripts --------------------------------------------------------------------------------

select is(
    pg_temp.chunks(repeat('今天天气很好，我们去公园玩。孩子们在草地上跑来跑去！', 5)),
    array[
        repeat('今天天气很好，我们去公园玩。孩子们在草地上跑来跑去！', 3) || '今天天气很好，我们去公园玩。',
        '孩子们在草地上跑来跑去！今天天气很好，我们去公园玩。孩子们在草地上跑来跑去！'
    ],
    'Chinese is cut after 。 and ！, though there is no space'
);
select is(
    pg_temp.chunks(repeat('他说：“今天天气很好。”然后走了。', 4), 'recursive', 50),
    array[
        repeat('他说：“今天天气很好。”然后走了。', 2) || '他说：“今天天气很好。”',
        '然后走了。他说：“今天天气很好。”然后走了。'
    ],
    'a closing quotation mark stays with its sentence'
);
select is(
    pg_temp.chunks(repeat('今天天气很好，', 10), 'recursive', 50),
    array[repeat('今天天气很好，', 7), repeat('今天天气很好，', 3)],
    'without a full stop it is cut after a comma'
);
select is(
    pg_temp.chunks(repeat('字', 120), 'recursive', 50),
    array[repeat('字', 50), repeat('字', 50), repeat('字', 20)],
    'without any sign between two characters'
);
select is(
    pg_temp.chunks(repeat('東京　大阪　', 15), 'recursive', 50),
    array[
        repeat('東京　大阪　', 8) || '東京', '大阪' || repeat('　東京　大阪', 6)
    ],
    'the wide space is white space'
);
select is(
    pg_temp.chunks(
        repeat('هذا نص عربي طويل لاختبار التقسيم، ويجب أن يعمل بشكل جيد؟ نعم، بالتأكيد. ', 2)
    ),
    array[
        'هذا نص عربي طويل لاختبار التقسيم، ويجب أن يعمل بشكل جيد؟ نعم، بالتأكيد.',
        'هذا نص عربي طويل لاختبار التقسيم، ويجب أن يعمل بشكل جيد؟ نعم، بالتأكيد.'
    ],
    'Arabic sentences'
);
select is(
    pg_temp.chunks(repeat('यह एक वाक्य है। यह दूसरा वाक्य है। ', 4)),
    array[
        repeat('यह एक वाक्य है। यह दूसरा वाक्य है। ', 2) || 'यह एक वाक्य है।',
        repeat('यह दूसरा वाक्य है। यह एक वाक्य है। ', 1) || 'यह दूसरा वाक्य है।'
    ],
    'Hindi sentences end with a danda'
);

-- Overlap --------------------------------------------------------------------------------------

select is(
    pg_temp.chunks(
        'The first one is here. The second one is here. The third one is here. The fourth one is '
        || 'here. The fifth one is here. The sixth one is here. The seventh is it.',
        'recursive', 100, 30
    ),
    array[
        'The first one is here. The second one is here. The third one is here. The fourth one is '
        || 'here.',
        'The fourth one is here. The fifth one is here. The sixth one is here. The seventh is it.'
    ],
    'the overlap is whole sentences'
);
select results_eq(
    $$
        select c.start_offset, c.end_offset, split_part(c.content, ' ', 1)
        from rag.chunk(pg_temp.words('word', 40), 'recursive', 100, 30) as c
    $$,
    $$ values (0, 95, 'word1'), (68, 165, 'word12'), (138, 235, 'word22'), (208, 270, 'word32') $$,
    'and whole words where a sentence is longer than that'
);
select is(
    (
        pg_temp.chunks(
            'Here is a sentence that is not short. Here is another one, and it is long: it has '
            || 'some clauses, it has words, and then it ends. Here is the last one of them all, '
            || 'at last.',
            'recursive', 130, 20
        )
    )[2],
    'and then it ends. Here is the last one of them all, at last.',
    'better from a clause'
);
select is(
    pg_temp.chunks(
        'The first paragraph is one long sentence that has no other end than the one at its end.'
        || E'\n\n'
        || 'The second paragraph is a long sentence that has no other end than the one at its end.',
        'recursive', 100, 40
    ),
    array[
        'The first paragraph is one long sentence that has no other end than the one at its end.',
        'The second paragraph is a long sentence that has no other end than the one at its end.'
    ],
    'a paragraph is not begun with half a sentence of the one before'
);
select is(
    pg_temp.chunks(
        repeat('One two. ', 7) || E'Three.\n\n' || repeat('one two ', 11) || E'three.\n\n'
        || 'The end of it.',
        'recursive', 100, 40
    ),
    array[
        repeat('One two. ', 7) || 'Three.', repeat('one two ', 11) || 'three.', 'The end of it.'
    ],
    'nor is a paragraph torn that would fit without the overlap'
);
select is(
    (
        select max(c.previous - c.start_offset)
        from (
            select
                c.start_offset,
                lag(c.end_offset) over (order by c.ordinal) as previous
            from rag.chunk(repeat('Some words. More words. ', 200), 'recursive', 200, 0) as c
        ) as c
    ),
    -1,
    'no overlap when none is asked for'
);

-- Markdown: headings ---------------------------------------------------------------------------

select is(
    pg_temp.outline(format(
        E'# Guide\n\n%1$s\n\n## Install\n\n%1$s\n\n### Linux\n\n%1$s\n\n## Use\n\n%1$s\n\n'
        '# Other\n\n%1$s',
        pg_temp.words('word', 7)
    )),
    array[
        'Guide: # Guide', 'Guide / Install: ## Install', 'Guide / Install / Linux: ### Linux',
        'Guide / Use: ## Use', 'Other: # Other'
    ],
    'each section is a chunk, with its headings'
);
select is(
    pg_temp.outline(format(
        E'#### Deep\n\n%1$s\n\n## Up\n\n%1$s\n\n###### Down\n\n%1$s\n\n# Top\n\n%1$s',
        pg_temp.words('word', 7)
    )),
    array['Deep: #### Deep', 'Up: ## Up', 'Up / Down: ###### Down', 'Top: # Top'],
    'levels may be left out'
);
select is(
    pg_temp.outline(format(
        E'Title\n=====\n\n%1$s\n\nSection\n---\n%1$s\n\nTwo\nlines\n===\n\n%1$s',
        pg_temp.words('word', 7)
    )),
    array['Title: Title', 'Title / Section: Section', 'Two lines: Two'],
    'headings may be underlined'
);
select is(
    rag._heading_text(t.line), t.title, t.line
)
from (values
    ('# Plain', 'Plain'),
    ('  ##  Closed  ##', 'Closed'),
    ('# C#', 'C#'),
    ('## The `a.b` *function*, **bold** and __bold__', 'The a.b function, bold and bold'),
    ('# snake_case_name and 2 * 3 * 4', 'snake_case_name and 2 * 3 * 4'),
    ('# _emphasis_', 'emphasis'),
    ('# [link](http://x.y/z), [ref][1], ![pic](a.png)', 'link, ref, pic'),
    ('## Install {#install}', 'Install'),
    ('## Título {/*titulo*/}', 'Título'),
    ('### <a name="x"></a>Anchor', 'Anchor'),
    ('### `List<T>`', 'List<T>'),
    ('# \# and \* escaped', '# and * escaped'),
    (E'# CR LF\r', 'CR LF')
) as t (line, title);
select is(
    pg_temp.outline(
        E'#hashtag\n\n    # indented\n\n\\# escaped\n\n####### seven\n\n#\n\ntext\n\n'
        || E'- item\n---\n\n    code\n---\n\n| a |\n---\n\n---\n\nend',
        200
    ),
    array[': #hashtag'],
    'what only looks like a heading is none'
);
select is(
    pg_temp.outline(
        E'# A\n\n```sh\n# no\nB\n===\n```\n\n~~~\n# no\n```\n# no\n~~~\n\n'
        || E'````md\n```\n# no\n```\n````\n\n## B\n\n' || pg_temp.words('b', 12)
    ),
    array['A: # A', 'A / B: ## B'],
    'lines of fenced code are no headings'
);
select is(
    pg_temp.outline(E'# A\n\n' || pg_temp.words('a', 40) || E'\n\n```\n# no\n\n# no', 300),
    array['A: # A'],
    'a fence that is never closed goes on to the end'
);
select is(
    pg_temp.outline(
        E'# A\n\n1. Do:\n\n   ```\n   # no\n# no\n   ```\n\n2. Then.\n\n## B\n\n'
        || pg_temp.words('b', 12)
    ),
    array['A: # A', 'A / B: ## B'],
    'code may stand in a list'
);
select is(
    pg_temp.outline(
        E'# A\n\n<!--\n# no\n-->\n\n<pre>\n# no\n\n# no\n</pre>\n\n## B\n\n'
        || pg_temp.words('b', 12)
    ),
    array['A: # A', 'A / B: ## B'],
    'nor are lines of comments and preformatted HTML'
);
select is(
    pg_temp.outline(
        E'---\ntitle: X\n# no\n---\n\n# A\n\n' || pg_temp.words('a', 12) || E'\n\n## B\n\n'
        || pg_temp.words('b', 12)
    ),
    array['A: ---', 'A / B: ## B'],
    'front matter is no heading and belongs to what follows'
);
select is(
    pg_temp.outline(E'---\n\n# A\n\n' || pg_temp.words('a', 22) || E'\n\n---\n\n## B\n\ntext'),
    array['A: ---', 'A / B: ## B'],
    'a rule at the start is no front matter'
);
select is(
    pg_temp.outline(E'\ufeff# A\n\n' || pg_temp.words('a', 22) || E'\n\n## B\n\nsome more text'),
    array[E'A: \ufeff# A', 'A / B: ## B'],
    'a byte order mark does no harm'
);
select is(
    pg_temp.outline(
        E'# A\r\n\r\n' || pg_temp.words('a', 22)
        || E'\r\n\r\nB\r\n---\r\n\r\n```\r\n# no\r\n```\r\n'
    ),
    array[E'A: # A\r', E'A / B: B\r'],
    'nor do lines that end with CR LF'
);
select is(
    (pg_temp.outline('# ' || repeat('long ', 200) || E'\n\ntext'))[1],
    ': # ' || rtrim(repeat('long ', 19)),
    'a line of more than 500 characters is no heading'
);

-- Markdown: sections that share a chunk --------------------------------------------------------

select is(
    pg_temp.outline(E'# A\n\n## B\n\n### C\n\n' || pg_temp.words('c', 15)),
    array['A / B / C: # A'],
    'headings with nothing between them stay together'
);
select is(
    pg_temp.outline(E'# T\n\n## A\n\none\n\n## B\n\ntwo\n\n## C\n\nthree\n\n# U\n\nfour', 200),
    array['T: # T', 'U: # U'],
    'small sections under one heading share a chunk, under the heading they share'
);
select is(
    pg_temp.outline(format(
        E'# T\n\n%1$s\n\n## A\n\n%2$s\n\n## B\n\n%2$s\n\n## C\n\n%1$s\n\n## D\n\n%2$s\n\n'
        '# U\n\n%2$s',
        pg_temp.words('long', 30), pg_temp.words('word', 18)
    ), 400),
    array['T: # T', 'T: ## A', 'T / C: ## C', 'T / D: ## D', 'U: # U'],
    'a section of some size has a chunk of its own'
);
select is(
    pg_temp.outline(
        E'# A\n\n' || pg_temp.words('a', 60) || E'\n\n## B\n\ntext\n\n# C\n\ntext', 300
    ),
    array['A: # A', 'C: # C'],
    'a tiny section at the end joins the one before, where that has the same heading above'
);
select is(
    (pg_temp.outline(E'# A\n\nSee also: below.\n\n## B\n\n' || pg_temp.words('b', 120), 300))[1],
    'A / B: # A',
    'a tiny section goes with the next, and the headings are those of the larger one'
);
select is(
    pg_temp.chunks(
        E'# A\n\nText of A. More of A.\n\n# B\n\n' || repeat('Text of Bob. ', 13),
        'markdown', 100, 40
    ),
    array[
        E'# A\n\nText of A. More of A.',
        E'# B\n\n' || rtrim(repeat('Text of Bob. ', 7)),
        rtrim(repeat('Text of Bob. ', 7))
    ],
    'nothing overlaps into another section'
);

-- Markdown: what is kept in one piece ----------------------------------------------------------

select is(
    pg_temp.chunks(
        E'Foo bar. Foo bar. Foo bar. Foo bar.\n\n' || t.block || E'\n\n' || pg_temp.words('b', 12),
        'markdown'
    ),
    array['Foo bar. Foo bar. Foo bar. Foo bar.', ltrim(t.block), pg_temp.words('b', 12)],
    t.name || ' stays in one piece'
)
from (
    values
    ('code', E'```\nx = "One. Two";\n\ny = "Three. Four";\n\nz = "Five. Six";\nprint(x, y)\n```'),
    ('indented code', E'    x = "One. Two";\n\n    y = "Three. Four";\n\n    print(x, y) // more'),
    ('a table', E'| a | b |\n|---|---|\n| One. Two. | three |\n| Four. | six |\n| Nine. | ten |'),
    (
        'a table without bars',
        E'a | b\n---|---\nOne. Two. | three\nFour. | six\nSeven. | eight and nine and ten'
    ),
    ('a list', E'- One. Two.\n- three\n  - four\n\n  Five. Six.\n\n- seven and eight and nine'),
    ('a numbered list', E'1. One. Two.\n2. three\n\n   Four. Five.\n\n10. six and seven and eight'),
    ('a quotation', E'> One. Two.\n>\n> Three. Four. Five.\n> Six. Seven. Eight. Nine.\n> Next.')
) as t (name, block);
select is(
    pg_temp.chunks(
        pg_temp.words('a', 20) || E'.\n\nFor example:\n\n```\n' || pg_temp.words('x', 9)
        || E'\n```',
        'markdown'
    ),
    array[
        pg_temp.words('a', 20) || '.',
        E'For example:\n\n```\n' || pg_temp.words('x', 9) || E'\n```'
    ],
    'with the line that introduces it'
);
select is(
    pg_temp.chunks(
        E'# A\n\n```\n' || repeat(E'x = "Foo. Bar";\n', 10) || E'```\n\n' || pg_temp.words('b', 12),
        'markdown'
    ),
    array[
        E'# A\n\n```' || repeat(E'\nx = "Foo. Bar";', 5),
        repeat(E'x = "Foo. Bar";\n', 5) || '```',
        pg_temp.words('b', 12)
    ],
    'code that does not fit is cut at its lines'
);
select is(
    pg_temp.chunks(
        E'```\n' || repeat(E'line one\nline two\n', 10) || '```', 'markdown', 100, 30
    ),
    array[
        '```' || repeat(E'\nline one\nline two', 5),
        repeat(E'line one\nline two\n', 5) || '```'
    ],
    'and overlaps by lines'
);
select is(
    pg_temp.chunks(
        E'# A' || repeat(E'\n- an item of it. And more', 2)
        || repeat(E'\n- another one. And more', 2),
        'markdown'
    ),
    array[
        E'# A' || repeat(E'\n- an item of it. And more', 2),
        E'- another one. And more\n- another one. And more'
    ],
    'a heading is not left alone before something that fits without it'
);

-- What always holds ----------------------------------------------------------------------------

-- The faults of the chunks of a text.
create function pg_temp.faults(content text, strategy text, size int, overlap int)
    returns table (fault text, ordinal int)
    language sql
    immutable
as $$
    with
    chunks as (
        select
            c.*,
            coalesce(max(c.end_offset) over w, 0) as covered,
            row_number() over (order by c.ordinal) - 1 as n
        from rag.chunk($1, $2, $3, $4) as c
        window w as (order by c.ordinal rows between unbounded preceding and 1 preceding)
    )

    select f.fault, c.ordinal
    from chunks as c
    cross join lateral (
        values
        ('number', c.ordinal <> c.n),
        ('offsets', c.content <> substr($1, c.start_offset + 1, c.end_offset - c.start_offset)),
        ('size', length(c.content) > $3 and $2 <> 'none'),
        ('blank', btrim(c.content, rag._whitespace()) = ''),
        ('white space', btrim(c.content, rag._whitespace()) <> c.content),
        ('overlap', c.covered - c.start_offset > $4),
        ('nothing new', c.end_offset <= c.covered),
        (
            'gap',
            btrim(
                substr($1, c.covered + 1, greatest(c.start_offset - c.covered, 0)),
                rag._whitespace()
            ) <> ''
        )
    ) as f (fault, is_found)
    where f.is_found
    union all
    select 'rest', null
    where
        btrim(
            substr($1, 1 + coalesce((select max(c.end_offset) from chunks as c), 0)),
            rag._whitespace()
        ) <> ''
$$;

select is_empty(
    $$
        select t.text, s.strategy, f.*
        from (values
            (repeat(E'# A\n\nOne. Two, three.\n\n- a\n- b\n\n```\ncode\n```\n\n', 20)),
            (repeat(E'a\n', 300)), (repeat(E'\n\n# \n', 50)),
            (repeat('x', 499) || ' ' || repeat('y', 501)),
            (repeat(E'| a | b |\n|---|---|\n', 30)), (repeat('> q. ' || E'\n>\n', 60)),
            (repeat('今天天气很好，', 90)), (repeat('👩‍👩‍👧‍👦 ', 80)), (repeat(E'\r\n \t\u00a0x', 99)),
            (E'---\na: b\n---\n' || repeat(E'Title\n---\nWords and words.\n', 30)),
            (repeat(E'1. one\n\n   two\n\n', 40)), (repeat(E'<pre>\n# x\n', 40)),
            (repeat('. ', 300)), (repeat(E'`````\n', 50)), (repeat(E'\u0301', 300)),
            (repeat(':' || E'\n\n', 100))
        ) as t (text)
        cross join (values ('recursive'), ('markdown'), ('none')) as s (strategy)
        cross join (values (50, 0), (50, 24), (133, 66), (800, 100)) as n (size, overlap)
        cross join pg_temp.faults(t.text, s.strategy, n.size, n.overlap) as f
    $$,
    'chunks hold the whole text in order, none too long, blank or ragged'
);

select * from finish();
rollback;
