//! Rounds of the learning loop: what each is about and where it is. What moves them is in [`crate::round_changes`].
//!
//! ```text
//! building ──> training ──> gating ──> awaiting_approval ──> shadow ──> canary ──> promoted
//!    │                        │  (what the policy does not ask for is left out)
//!    v                        v
//! skipped                  refused        vetoed, rolled_back, failed and cancelled: from where something can go wrong
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::any::AnyRow;

use crate::{
    checks::{check_name, document},
    clock::now_ms,
    digest::GenerationDigest,
    error::StoreError,
    jobs::JobError,
    owner::{Owner, time_id},
    page::{Listing, Page},
    row::Fields,
    store::Store,
};

pub(crate) const KIND: &str = "round";

/// Where a round is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RoundState {
    /// Its data set is gathered.
    Building,
    /// Its jobs train.
    Training,
    /// Its candidate is judged.
    Gating,
    /// Its candidate has passed, and somebody has to agree.
    AwaitingApproval,
    /// Copies of requests run on the candidate, and nobody sees the answers.
    Shadow,
    /// A share of requests runs on the candidate.
    Canary,
    /// All requests do.
    Promoted,
    /// The gate did not let it pass.
    Refused,
    /// Somebody did not agree.
    Vetoed,
    /// A guardrail was hit.
    RolledBack,
    /// It could not go on.
    Failed,
    /// There was too little to learn from.
    Skipped,
    /// Somebody ended it.
    Cancelled,
}

impl RoundState {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Building,
        Self::Training,
        Self::Gating,
        Self::AwaitingApproval,
        Self::Shadow,
        Self::Canary,
        Self::Promoted,
        Self::Refused,
        Self::Vetoed,
        Self::RolledBack,
        Self::Failed,
        Self::Skipped,
        Self::Cancelled,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Training => "training",
            Self::Gating => "gating",
            Self::AwaitingApproval => "awaiting_approval",
            Self::Shadow => "shadow",
            Self::Canary => "canary",
            Self::Promoted => "promoted",
            Self::Refused => "refused",
            Self::Vetoed => "vetoed",
            Self::RolledBack => "rolled_back",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nobody runs it any more. (What was promoted can still be vetoed or rolled back.)
    pub fn is_final(self) -> bool {
        match self {
            Self::Building
            | Self::Training
            | Self::Gating
            | Self::AwaitingApproval
            | Self::Shadow
            | Self::Canary => false,
            Self::Promoted
            | Self::Refused
            | Self::Vetoed
            | Self::RolledBack
            | Self::Failed
            | Self::Skipped
            | Self::Cancelled => true,
        }
    }

    /// Whether a round in this state is worked on by nobody, but waits: for people, or for requests.
    pub fn waits(self) -> bool {
        matches!(self, Self::AwaitingApproval | Self::Shadow | Self::Canary)
    }

    /// Whether whoever runs a round in this state may bring it to another.
    pub(crate) fn leads_to(self, to: Self) -> bool {
        let is_rolled_out = matches!(to, Self::Shadow | Self::Canary | Self::Promoted);
        match self {
            Self::Building => matches!(to, Self::Training | Self::Skipped | Self::Failed),
            Self::Training => matches!(to, Self::Gating | Self::Failed),
            Self::Gating => {
                is_rolled_out || matches!(to, Self::Refused | Self::AwaitingApproval | Self::Failed)
            }
            Self::AwaitingApproval => is_rolled_out || to == Self::Failed,
            Self::Shadow => {
                matches!(to, Self::Canary | Self::Promoted | Self::RolledBack | Self::Failed)
            }
            Self::Canary => matches!(to, Self::Promoted | Self::RolledBack | Self::Failed),
            Self::Promoted
            | Self::Refused
            | Self::Vetoed
            | Self::RolledBack
            | Self::Failed
            | Self::Skipped
            | Self::Cancelled => false,
        }
    }
}

/// What somebody, or a guardrail, decides about a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// What waits for that may go on.
    Approve,
    /// What has passed the gate does not serve, or no longer.
    Veto,
    /// What has not ended ends.
    Cancel,
    /// What was promoted serves no longer.
    RollBack,
}

/// A decision that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// Which.
    pub decision: Decision,
    /// Who made it.
    pub by: String,
    /// Why; may be empty.
    pub reason: String,
    /// When, Unix ms.
    pub at_ms: i64,
}

/// A round to begin.
#[derive(Clone, Debug)]
pub struct NewRound<'a> {
    /// The adapter's name.
    pub name: &'a str,
    /// The generation that it goes on from; `None` is the plain base.
    pub parent: Option<GenerationDigest>,
    /// The generation that it is to replace without what was erased.
    pub rebuild_of: Option<GenerationDigest>,
    /// JSON, whose shape is the server's business.
    pub progress: Value,
}

/// A round.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRound {
    /// Whose.
    pub owner: Owner,
    /// `round-…`.
    pub id: String,
    /// The adapter's name.
    pub name: String,
    /// Where it is.
    pub state: RoundState,
    /// The generation that it is to replace without what was erased.
    pub rebuild_of: Option<GenerationDigest>,
    /// The generation that it goes on from; `None` is the plain base.
    pub parent: Option<GenerationDigest>,
    /// What it trained.
    pub candidate: Option<GenerationDigest>,
    /// Its data set: a file of the owner's.
    pub file: Option<String>,
    /// JSON, as it was last given.
    pub progress: Value,
    /// JSON, of the gate.
    pub verdict: Option<Value>,
    /// Why it failed.
    pub error: Option<JobError>,
    /// What was decided about it, in order.
    pub decisions: Vec<Decided>,
    /// From 1: the how-manieth of its name it is that reached the gate.
    pub look: Option<u32>,
    /// Grows with each change.
    pub revision: i64,
    /// When it began, Unix ms.
    pub created_ms: i64,
    /// When it last changed, Unix ms.
    pub updated_ms: i64,
    /// When it ended, Unix ms.
    pub ended_ms: Option<i64>,
}

impl StoredRound {
    /// Whether somebody agreed.
    pub fn is_approved(&self) -> bool {
        self.decisions.iter().any(|decided| decided.decision == Decision::Approve)
    }
}

const NEW: &str = "INSERT INTO rounds (owner, id, name, state, rebuild_of, parent, progress, \
     decisions, revision, created_ms, updated_ms) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, '[]', 1, $8, $8)";
pub(crate) const ONE: &str = "SELECT * FROM rounds WHERE owner = $1 AND id = $2";
const OPEN: &str = "SELECT id FROM rounds WHERE owner = $1 AND name = $2 AND ended_ms IS NULL";
const NEWEST: &str = "SELECT * FROM rounds WHERE owner = $1 AND name = $2 \
     AND ($3 = '' OR id < $3) ORDER BY id DESC LIMIT $4";
const ALL_OPEN: &str =
    "SELECT * FROM rounds WHERE ended_ms IS NULL AND id > $1 ORDER BY id LIMIT $2";
const NOT_DONE: &str = "SELECT * FROM rounds WHERE ended_ms IS NOT NULL AND done_ms IS NULL \
     AND id > $1 ORDER BY id LIMIT $2";
pub(crate) const LOOKS: &str = "SELECT CAST(COALESCE(MAX(look), 0) AS BIGINT) AS looks \
     FROM rounds WHERE owner = $1 AND name = $2";

impl Store {
    /// Begins a round. A name has one at a time.
    ///
    /// # Errors
    /// [`StoreError::RoundOpen`]; when the owner does not exist or the name cannot be one.
    pub async fn create_round(
        &self,
        owner: &Owner,
        round: &NewRound<'_>,
    ) -> Result<StoredRound, StoreError> {
        let NewRound { name, parent, rebuild_of, progress } = round;
        check_name("name of an adapter", name)?;
        let text = document(progress)?;
        let action = format!("begin a round of {name:?} of {owner}");
        let failed = |source| StoreError::database(&action, source);
        let mut change = self.database.begin_for(owner, &action).await?;
        let open = sqlx::query(OPEN)
            .bind(owner.as_str())
            .bind(*name)
            .fetch_optional(&mut *change)
            .await
            .map_err(failed)?;
        if let Some(row) = &open {
            let id = Fields { row, table: "rounds" }.text("id")?;
            return Err(StoreError::RoundOpen { name: (*name).to_owned(), id });
        }
        let id = time_id("round-")?;
        sqlx::query(NEW)
            .bind(owner.as_str())
            .bind(&id)
            .bind(*name)
            .bind(RoundState::Building.name())
            .bind(rebuild_of.map(|digest| digest.to_string()))
            .bind(parent.map(|digest| digest.to_string()))
            .bind(text)
            .bind(now_ms())
            .execute(&mut *change)
            .await
            .map_err(failed)?;
        change.commit().await.map_err(failed)?;
        self.round(owner, &id).await
    }

    /// One round of an owner.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also if it is another's.
    pub async fn round(&self, owner: &Owner, id: &str) -> Result<StoredRound, StoreError> {
        let row = sqlx::query(ONE)
            .bind(owner.as_str())
            .bind(id)
            .fetch_optional(self.database.readers())
            .await
            .map_err(|source| StoreError::database(format!("read round {id:?}"), source))?;
        row.as_ref().map_or_else(|| Err(unknown(id)), round_in)
    }

    /// Rounds of a name, newest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn rounds(
        &self,
        owner: &Owner,
        name: &str,
        page: &Page<'_>,
    ) -> Result<Listing<StoredRound>, StoreError> {
        let rows = sqlx::query(NEWEST)
            .bind(owner.as_str())
            .bind(name)
            .bind(page.after())
            .bind(page.limit())
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| StoreError::database(format!("list rounds of {name:?}"), source))?;
        listing(&rows, page)
    }

    /// Rounds of all owners that have not ended, oldest first; for a server that starts.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn open_rounds(&self, page: &Page<'_>) -> Result<Listing<StoredRound>, StoreError> {
        let rows = sqlx::query(ALL_OPEN)
            .bind(page.after())
            .bind(page.limit())
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| StoreError::database("list open rounds", source))?;
        listing(&rows, page)
    }

    /// Rounds of all owners that have ended and of which something is left to do, oldest first: until somebody says that it
    /// is done ([`Self::round_done`]).
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn rounds_not_done(
        &self,
        page: &Page<'_>,
    ) -> Result<Listing<StoredRound>, StoreError> {
        let rows = sqlx::query(NOT_DONE)
            .bind(page.after())
            .bind(page.limit())
            .fetch_all(self.database.readers())
            .await
            .map_err(|source| StoreError::database("list rounds that have ended", source))?;
        listing(&rows, page)
    }

    /// How many rounds of a name reached the gate by now.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn looks(&self, owner: &Owner, name: &str) -> Result<u32, StoreError> {
        let row = sqlx::query(LOOKS)
            .bind(owner.as_str())
            .bind(name)
            .fetch_one(self.database.readers())
            .await
            .map_err(|source| StoreError::database(format!("count rounds of {name:?}"), source))?;
        Fields { row: &row, table: "rounds" }.number("looks")
    }
}

fn listing(rows: &[AnyRow], page: &Page<'_>) -> Result<Listing<StoredRound>, StoreError> {
    let rounds = rows.iter().map(round_in).collect::<Result<_, _>>()?;
    Ok(Listing::new(rounds, page, |round: &StoredRound| round.id.clone()))
}

pub(crate) fn state_in(row: &AnyRow) -> Result<RoundState, StoreError> {
    let fields = Fields { row, table: "rounds" };
    let state = fields.text("state")?;
    let found = RoundState::ALL.into_iter().find(|known| known.name() == state);
    found.ok_or_else(|| fields.corrupt("state", format!("{state:?} is none")))
}

pub(crate) fn round_in(row: &AnyRow) -> Result<StoredRound, StoreError> {
    let fields = Fields { row, table: "rounds" };
    Ok(StoredRound {
        owner: fields.owner("owner")?,
        id: fields.text("id")?,
        name: fields.text("name")?,
        state: state_in(row)?,
        rebuild_of: fields.maybe_parsed("rebuild_of")?,
        parent: fields.maybe_parsed("parent")?,
        candidate: fields.maybe_parsed("candidate")?,
        file: fields.maybe_text("file")?,
        progress: fields.json("progress")?,
        verdict: fields.maybe_json("verdict")?,
        error: fields.maybe_json("error")?,
        decisions: fields.json("decisions")?,
        look: fields.maybe_number("look")?,
        revision: fields.int("revision")?,
        created_ms: fields.int("created_ms")?,
        updated_ms: fields.int("updated_ms")?,
        ended_ms: fields.maybe_int("ended_ms")?,
    })
}

pub(crate) fn unknown(id: &str) -> StoreError {
    StoreError::NotFound { kind: KIND, id: id.to_owned() }
}
