-- What is known of an embedding beside its vector, and which model was active before the last
-- change.
--
-- Takes rag.embeddings with all its partitions exclusively for a moment; no row is read or
-- written. With thousands of partitions raise max_locks_per_transaction before: each takes a lock.

alter table rag.embeddings
add column truncated_tokens int;

-- Tables of tenants who are moving are no partitions yet.
do $$
declare
    v_table regclass;
begin
    for v_table in
        select c.oid::regclass
        from pg_class as c
        where
            c.relnamespace = 'rag_data'::regnamespace
            and c.relkind = 'r'
            and not c.relispartition
            and c.relname ~ '^embeddings_m\d+_p\d+$'
    loop
        execute format('alter table %s add column truncated_tokens int', v_table);
    end loop;
end
$$;

comment on column rag.embeddings.truncated_tokens is
    'Tokens of the passage beyond what the model takes, which the vector knows nothing of; null: '
    'unknown.';

-- No foreign key: that the model before was dropped is to be told.
alter table rag.models
add column previous_model_id int;

comment on column rag.models.previous_model_id is
    'The model that was active before this one became so: where rag.rollback_model goes back to.';
comment on column rag.models.activated_at is 'When it last became the active one.';

update rag.models as m
set previous_model_id = (
    select p.model_id
    from rag.models as p
    where p.model_id <> m.model_id and p.activated_at is not null
    order by p.activated_at desc
    limit 1
)
where m.is_active;

-- They have one parameter more from now on.
drop function if exists rag.complete_jobs(uuid, bigint[], vector[]);

-- It returns the table now, which no "create or replace" can change.
drop function if exists rag._create_child(text, regclass, int, boolean, regclass);
