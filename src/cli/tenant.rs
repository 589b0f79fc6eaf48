//! `pleach tenant`: tenants and their keys, in the store itself: a server that uses it need not run, and if it does, it
//! notices within seconds.
#![expect(clippy::print_stdout, reason = "ids, keys and tables go to standard output, for scripts")]

mod change;
mod key;
mod table;

use anyhow::Context as _;
use pleach_store::{Page, Store, Tenant, TenantId};
use serde::Serialize;

use self::{change::ChangeArgs, key::KeyCommand};
use super::serve::settings::read_store_place;
use crate::{http::wire::tenants::TenantCard, serving};

/// Make, change and list tenants and their API keys.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    /// The store that the server uses: an SQLite file, or postgres://… [default: pleach.db in the data folder].
    #[arg(
        long,
        env = "PLEACH_DATABASE",
        value_name = "FILE|URL",
        hide_env_values = true,
        global = true
    )]
    database: Option<String>,
    /// Where the server keeps files of adapters [default: blobs in the data folder].
    #[arg(long, env = "PLEACH_BLOBS", value_name = "DIR|URL", global = true)]
    blobs: Option<String>,
    /// Print JSON, in the shape of /v1/admin.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a tenant and print its id.
    Add {
        /// For people; no two tenants have the same.
        name: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// List all tenants.
    List,
    /// Show one tenant.
    Show {
        /// Its name or id.
        tenant: String,
    },
    /// Change a tenant; what is not named stays as it is.
    Set {
        /// Its name or id.
        tenant: String,
        /// Another name.
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Accept none of a tenant's keys until it is enabled again.
    Disable {
        /// Its name or id.
        tenant: String,
    },
    /// Accept a tenant's keys again.
    Enable {
        /// Its name or id.
        tenant: String,
    },
    /// Make, list and revoke the API keys of a tenant.
    #[command(subcommand)]
    Key(KeyCommand),
}

/// Does what was asked and prints it.
///
/// # Errors
/// A flag that cannot be used, a store that cannot be opened, a tenant or key that there is not.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let place = read_store_place(args.database.as_deref(), args.blobs.as_deref())?;
    let store = serving::open_store(&place).await?;
    let done = execute(&store, args.command, args.json).await;
    let closed = store.close().await.context("cannot close the store");
    done.and(closed)
}

async fn execute(store: &Store, command: Command, json: bool) -> anyhow::Result<()> {
    match command {
        Command::Add { name, change } => {
            let settings = change.into_change(Some(name)).into_settings();
            let tenant = store.create_tenant(settings).await?;
            if json {
                return print_json(&TenantCard::from(tenant));
            }
            println!("{}", tenant.id);
            Ok(())
        }
        Command::List => {
            let tenants = all_tenants(store).await?;
            if json {
                return print_json(&tenants.into_iter().map(TenantCard::from).collect::<Vec<_>>());
            }
            print!("{}", table::tenants(&tenants));
            Ok(())
        }
        Command::Show { tenant } => print_tenant(find(store, &tenant).await?, json),
        Command::Set { tenant, name, change } => {
            let id = find(store, &tenant).await?.id;
            print_tenant(change.into_change(name).write(store, &id).await?, json)
        }
        Command::Disable { tenant } => set_enabled(store, &tenant, false, json).await,
        Command::Enable { tenant } => set_enabled(store, &tenant, true, json).await,
        Command::Key(command) => key::execute(store, command, json).await,
    }
}

async fn set_enabled(store: &Store, tenant: &str, enabled: bool, json: bool) -> anyhow::Result<()> {
    let id = find(store, tenant).await?.id;
    store.set_tenant_enabled(&id, enabled).await?;
    print_tenant(store.tenant(&id).await?, json)
}

async fn all_tenants(store: &Store) -> anyhow::Result<Vec<Tenant>> {
    let mut tenants = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.tenants(&Page { after: after.as_deref(), ..Page::FIRST }).await?;
        tenants.extend(page.items);
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(tenants),
        }
    }
}

/// A tenant by its id or its name.
async fn find(store: &Store, text: &str) -> anyhow::Result<Tenant> {
    if let Some(tenant) = store.find_tenant(text).await? {
        return Ok(tenant);
    }
    let id = TenantId::parse(text).with_context(|| format!("there is no tenant {text:?}"))?;
    Ok(store.tenant(&id).await?)
}

fn print_tenant(tenant: Tenant, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(&TenantCard::from(tenant));
    }
    print!("{}", table::tenant(&tenant));
    Ok(())
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
