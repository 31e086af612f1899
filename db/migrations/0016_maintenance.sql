-- Maintenance that is kept in a table, erasures that are seen through, and partitions that are not
-- dropped while a transaction may still read them. All tables are altered without being rewritten.

alter table rag.partitions
add column readers text[] not null default '{}';

comment on column rag.partitions.readers is
    'Transactions that were open when it was found empty: their snapshots may still lead to it.';

create table rag.maintenance_runs (
    run_id bigint generated always as identity primary key,
    started_at timestamptz not null default clock_timestamp(),
    finished_at timestamptz,
    pid int not null default pg_backend_pid(),
    lock_key bigint not null,
    started_by text not null
);

create unique index maintenance_runs_one_at_a_time on rag.maintenance_runs ((true))
where finished_at is null;

comment on table rag.maintenance_runs is 'Calls of rag.maintain; of 90 days.';
comment on column rag.maintenance_runs.lock_key is
    'The advisory lock that its session holds: by it others see that it still runs.';

-- No column tenant_id: a log of what was done is no tenant's data, and names nobody.
create table rag.maintenance_steps (
    run_id bigint not null references rag.maintenance_runs (run_id) on delete cascade,
    step int not null,
    action text not null,
    subject int,
    object text,
    reason text not null,
    result text,
    position bigint not null default 0,
    started_at timestamptz,
    finished_at timestamptz,
    primary key (run_id, step)
);

comment on table rag.maintenance_steps is
    'What runs of rag.maintain planned, and what became of that.';
comment on column rag.maintenance_steps.subject is 'The id of the tenant it is about, if any.';
comment on column rag.maintenance_steps.position is 'How far a step of many parts has come.';

create table rag.erasures (
    erased_id int primary key,
    partition_id int not null,
    erased_at timestamptz not null default clock_timestamp(),
    erased_by text not null,
    removed jsonb not null,
    settled_at timestamptz
);

create index erasures_unsettled on rag.erasures (erased_id) where settled_at is null;

comment on table rag.erasures is
    'Tenants that were dropped, by number: what was removed, and when.';
comment on column rag.erasures.removed is 'Rows removed, by kind.';
comment on column rag.erasures.settled_at is
    'Since when the planner''s statistics, which hold samples of the rows, are made without him.';

-- They have one parameter more from now on.
drop function if exists rag._begin_move(text);
