//! API keys.

use pleach_store::{
    ApiKey, ApiKeyText, KeyCheck, KeyRefused, NewApiKey, Page, Scope, Scopes, Store, StoreError,
    TenantId,
};
use sqlx::Row as _;

use crate::{
    on_both,
    place::{Place, tenant},
};

on_both!(
    a_key_is_accepted_until_it_is_not,
    secrets_are_not_in_the_database,
    last_uses_are_written_lazily,
    a_key_belongs_to_its_tenant,
);

async fn key(store: &Store, tenant: &TenantId, expires_ms: Option<i64>) -> (ApiKey, ApiKeyText) {
    let scopes = Scopes::from_iter([Scope::Infer, Scope::Train]);
    let (tenant, name) = (tenant.clone(), "laptop".to_owned());
    store.create_key(NewApiKey { tenant, name, scopes, expires_ms }).await.unwrap()
}

async fn refused(store: &Store, text: &str) -> KeyRefused {
    match store.check_key(text).await.unwrap() {
        KeyCheck::Refused(reason) => reason,
        KeyCheck::Accepted(key) => panic!("{text} was accepted as {key:?}"),
    }
}

async fn a_key_is_accepted_until_it_is_not(place: Place) {
    let store = place.open().await;
    assert!(!store.has_keys().await.unwrap());
    let owner = tenant(&store, "one").await;
    let (made, text) = key(&store, &owner, Some(i64::MAX)).await;
    assert!(store.has_keys().await.unwrap());
    let text = text.reveal();
    let KeyCheck::Accepted(found) = store.check_key(&text).await.unwrap() else {
        panic!("a new key was refused")
    };
    assert_eq!(found, made);
    assert!(found.scopes.contains(Scope::Train) && !found.scopes.contains(Scope::Admin));

    // Another secret, another id, and no key at all.
    let (_, other) = key(&store, &owner, None).await;
    let (_, secret) = text.rsplit_once('_').unwrap();
    let mixed = format!("plk_{}_{secret}", other.id());
    assert_eq!(refused(&store, &mixed).await, KeyRefused::Unknown);
    assert_eq!(
        refused(&store, &format!("plk_{}_{secret}", "0".repeat(16))).await,
        KeyRefused::Unknown
    );
    for malformed in ["", "plk_", &text[1..], &text[..84], "Bearer x", "' OR 1=1 --"] {
        assert_eq!(refused(&store, malformed).await, KeyRefused::Malformed);
    }

    let (_, expired) = key(&store, &owner, Some(1)).await;
    assert_eq!(refused(&store, &expired.reveal()).await, KeyRefused::Expired);
    store.set_tenant_enabled(&owner, false).await.unwrap();
    assert_eq!(refused(&store, &text).await, KeyRefused::TenantDisabled);
    store.set_tenant_enabled(&owner, true).await.unwrap();
    assert!(matches!(store.check_key(&text).await.unwrap(), KeyCheck::Accepted(_)));
    store.revoke_key(&owner, &made.id).await.unwrap();
    store.revoke_key(&owner, &made.id).await.unwrap();
    assert_eq!(refused(&store, &text).await, KeyRefused::Revoked);
}

async fn secrets_are_not_in_the_database(place: Place) {
    let store = place.open().await;
    let owner = tenant(&store, "one").await;
    let (_, text) = key(&store, &owner, None).await;
    let row = sqlx::query("SELECT * FROM api_keys").fetch_one(&place.raw().await).await.unwrap();
    let texts: Vec<String> = (0..row.len()).filter_map(|column| row.try_get(column).ok()).collect();
    assert!(texts.contains(&text.id().to_owned()), "{texts:?}");
    let revealed = text.reveal();
    let (_, secret) = revealed.rsplit_once('_').unwrap();
    assert!(!texts.iter().any(|text| text.contains(secret)), "{texts:?}");
}

async fn last_uses_are_written_lazily(place: Place) {
    let store = place.open().await;
    let owner = tenant(&store, "one").await;
    let (made, text) = key(&store, &owner, None).await;
    let last_used_ms =
        async |store: &Store| store.keys(&owner, &Page::FIRST).await.unwrap().items[0].last_used_ms;
    store.check_key(&text.reveal()).await.unwrap();
    assert_eq!(last_used_ms(&store).await, None);
    store.flush_key_uses().await.unwrap();
    let first = last_used_ms(&store).await;
    assert!(first >= Some(made.created_ms), "{first:?}");
    store.note_key_use(&made.id);
    store.note_key_use("of nobody");
    store.close().await.unwrap();
    assert!(last_used_ms(&place.open().await).await >= first);
}

async fn a_key_belongs_to_its_tenant(place: Place) {
    let store = place.open().await;
    let (one, two) = (tenant(&store, "one").await, tenant(&store, "two").await);
    let (made, text) = key(&store, &one, None).await;
    let error = store.revoke_key(&two, &made.id).await.unwrap_err();
    assert!(matches!(error, StoreError::UnknownKey { .. }), "{error}");
    assert!(matches!(store.check_key(&text.reveal()).await.unwrap(), KeyCheck::Accepted(_)));
    assert_eq!(store.keys(&two, &Page::FIRST).await.unwrap().items, []);
    assert_eq!(store.keys(&one, &Page::FIRST).await.unwrap().items, [made]);

    let nobody = TenantId::parse("ten_0123456789abcdef").unwrap();
    let key = NewApiKey {
        tenant: nobody,
        name: "a".to_owned(),
        scopes: Scopes::default(),
        expires_ms: None,
    };
    let error = store.create_key(key).await.unwrap_err();
    assert!(matches!(error, StoreError::UnknownTenant { .. }), "{error}");
}
