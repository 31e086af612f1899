-- The roles of ragdb, for the whole cluster; run every time, before anything else.
--
-- Roles may exist already: made by an administrator, by another database of the same cluster, or
-- by an earlier run. What is there is left as it is. No superuser is needed: CREATEROLE will do,
-- or roles that an administrator has made and granted.

do $$
declare
    v_role record;
begin
    for v_role in
        select r.name, r.description
        from (values
            ('rag_owner', 'owns every object of ragdb; nobody logs in as it'),
            ('rag_admin', 'manages tenants, partitions and models'),
            ('rag_app', 'searches, puts and deletes, as a tenant it was granted'),
            ('rag_worker', 'the embedder: claims jobs and stores embeddings')
        ) as r (name, description)
    loop
        if not exists (
            select from pg_catalog.pg_roles as p where p.rolname = v_role.name
        ) then
            execute format('create role %I nologin', v_role.name);
            execute format('comment on role %I is %L', v_role.name, v_role.description);
        end if;
    end loop;
end
$$;

-- Since PostgreSQL 16 who creates a role may grant it but is no member of it: the migrating user
-- makes itself one, to create objects as rag_owner. A membership through another role will do too.
do $$
declare
    v_role record;
begin
    for v_role in
        select r.oid, r.rolname
        from pg_catalog.pg_roles as r
        where r.rolname in ('rag_owner', 'rag_admin', 'rag_app', 'rag_worker')
            and not exists (
                select
                from pg_catalog.pg_auth_members as m
                where m.roleid = r.oid
                    and m.member = current_user::regrole
                    and m.inherit_option
                    and m.set_option
            )
            and not exists (
                -- For a superuser pg_has_role is always true and says nothing.
                select
                from pg_catalog.pg_roles as me
                where me.rolname = current_user
                    and not me.rolsuper
                    and pg_catalog.pg_has_role(r.oid, 'set')
                    and pg_catalog.pg_has_role(r.oid, 'usage')
            )
        order by r.rolname
    loop
        execute format(
            'grant %I to %I with inherit true, set true', v_role.rolname, current_user
        );
    end loop;
end
$$;
