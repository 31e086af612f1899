-- A search in a big tenant took up to 43 locks, a search in a small one 30. What was looked up in a
-- table of its own for each search stands where the search has read a row anyway.
--
-- Locks rag.tenants and rag.models exclusively for a moment.

-- Searches have read the model; the set that is current was looked up beside it.
alter table rag.models add column word_vector_set int;

update rag.models as m
set word_vector_set = s.set_id
from rag.word_vector_sets as s
where s.model_id = m.model_id and s.is_current;

comment on column rag.models.word_vector_set is
    'The set of word vectors that searches use (rag.word_vector_sets.is_current); null: none.';

-- Most tenants have no document that expires, and all their searches asked whether one had.
alter table rag.tenants add column has_expiries boolean not null default false;

update rag.tenants as t
set has_expiries = true
where exists (
    select from rag.documents as d where d.tenant_id = t.tenant_id and d.expires_at is not null
);

comment on column rag.tenants.has_expiries is
    'Whether a document that expires has ever been put; else searches need not look for any.';

-- By the set from now on, and not by the model: another name of a parameter, which no "or replace"
-- can give.
drop function if exists rag._sum_word_vectors(int, text);

-- What belongs to posting lists in the table of the lists: which chunk a place is, and what has
-- changed since. An index of rag.postings is built, a second for a million rows; there are 60 lists
-- and some 5,000 words for a million chunks.
alter table rag.postings
alter column idf drop not null,
alter column weights drop not null,
add column change_id bigint not null default 0,
add column chunk_ids bigint[],
drop constraint postings_pkey,
add primary key (tenant_id, generation, dimension, block, change_id),
add constraint posting_is_of_its_kind check (
    case
        when dimension > 0 then num_nulls(idf, weights) = 0 and chunk_ids is null
        else num_nonnulls(idf, weights) = 0 and chunk_ids is not null
    end
);

alter table rag.postings alter column chunk_ids set storage plain;

create sequence rag.posting_change_ids;

select setval('rag.posting_change_ids', s.last_value, s.is_called)
from rag.posting_changes_change_id_seq as s;

insert into rag.postings (tenant_id, generation, dimension, block, chunk_ids)
select p.tenant_id, p.generation, -1 - p.part, p.block, p.chunk_ids
from rag.posting_places as p;

insert into rag.postings (tenant_id, generation, dimension, block, change_id, chunk_ids)
select c.tenant_id, 0, 0, 0, c.change_id, array[c.chunk_id]
from rag.posting_changes as c;

drop table rag.posting_places, rag.posting_changes;

comment on table rag.postings is
    'By dimension: above 0, of a lexeme its part of the score of each chunk in a block of 16,000; '
    'below 0, which chunk a place in a block is, -1 for the first 500; 0, chunks that were indexed '
    'after the lists were made, each of which searches look at.';
comment on column rag.postings.change_id is 'The number of a change; 0 for what is none.';
comment on column rag.postings.chunk_ids is
    'Places: the chunks at 500 of them, in their order. Changes: the chunks.';
comment on sequence rag.posting_change_ids is
    'Numbers of changes: one that is noted later has a greater one, whoever commits first.';
