//! Policies: changed by compare-and-swap, seen by their owner and by whoever acts on all of them.

use pleach_store::{Owner, POLICIES_MAX, Page, StoreError};
use serde_json::json;

use crate::{
    on_both,
    place::{Place, tenant},
};

on_both!(
    a_policy_is_changed_by_who_knows_it,
    all_policies_are_listed_in_pages,
    an_owner_has_so_many_and_sees_its_own
);

async fn an_owner_has_so_many_and_sees_its_own(place: Place) {
    let store = place.open().await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    let put = async |owner: &Owner, name: &str| {
        store.put_policy(owner, name, &json!({ "of": name }), None).await
    };
    put(&Owner::Shared, "theirs").await.unwrap();
    for index in 0..POLICIES_MAX {
        put(&owner, &format!("name {index:04}")).await.unwrap();
    }
    let refused = put(&owner, "one more").await.unwrap_err();
    assert!(matches!(refused, StoreError::QuotaExceeded { wanted: 1001, .. }), "{refused:?}");
    put(&owner, "name 0007").await.unwrap();
    let own = store.policies_of(&owner).await.unwrap();
    assert_eq!((own.len(), own[1].name.as_str()), (1000, "name 0001"));
    store.delete_policy(&owner, "name 0007").await.unwrap();
    assert_eq!(store.policies_of(&owner).await.unwrap().len(), 999);
    put(&owner, "one more").await.unwrap();
    let shared = store.policies_of(&Owner::Shared).await.unwrap();
    assert!(shared.len() == 1 && shared[0].name == "theirs");
}

async fn a_policy_is_changed_by_who_knows_it(place: Place) {
    let store = place.open().await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    let put = async |n: u64, expected| {
        let put = store.put_policy(&owner, "mia", &json!({ "n": n }), expected).await;
        put.map(|policy| policy.revision)
    };
    let refused = |result: Result<i64, StoreError>| match result {
        Err(StoreError::PolicyChanged { name, expected, found }) if name == "mia" => {
            (expected, found)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(put(1, Some(1)).await), (1, 0));
    assert_eq!(put(1, Some(0)).await.unwrap(), 1);
    assert_eq!(refused(put(2, Some(0)).await), (0, 1));
    assert_eq!(put(2, Some(1)).await.unwrap(), 2);
    assert_eq!(put(3, None).await.unwrap(), 3);
    // Of many that know the same revision one wins.
    let at_once = futures_util::future::join_all((0..6).map(|n| put(n, Some(3)))).await;
    assert_eq!(at_once.iter().filter(|result| result.is_ok()).count(), 1);
    drop(store);
    let store = place.open().await;
    let found = store.policy(&owner, "mia").await.unwrap();
    assert_eq!(found.revision, 4);
    assert!(found.body["n"].as_u64() < Some(6) && found.updated_ms > 0);
    for (owner, name) in [(&Owner::Shared, "mia"), (&owner, "tom")] {
        let unknown = store.policy(owner, name).await.unwrap_err();
        assert!(matches!(unknown, StoreError::NotFound { kind: "policy", .. }), "{unknown}");
        assert!(store.delete_policy(owner, name).await.is_err());
    }

    store.delete_policy(&owner, "mia").await.unwrap();
    assert!(store.policy(&owner, "mia").await.is_err());
    assert!(store.delete_policy(&owner, "mia").await.is_err(), "it is deleted already");
    // Who knew the deleted one does not know the next.
    let old = store.put_policy(&owner, "mia", &json!({}), Some(4)).await.unwrap_err();
    assert!(matches!(old, StoreError::PolicyChanged { expected: 4, found: 0, .. }), "{old}");
    assert_eq!(store.put_policy(&owner, "mia", &json!({}), Some(0)).await.unwrap().revision, 5);

    let long = json!("x".repeat(2 << 20));
    let long = store.put_policy(&owner, "mia", &long, None).await.unwrap_err();
    assert!(matches!(long, StoreError::MetadataTooLong { .. }), "{long}");
    let empty = store.put_policy(&owner, "", &json!({}), None).await.unwrap_err();
    assert!(matches!(empty, StoreError::InvalidText { .. }), "{empty}");
}

async fn all_policies_are_listed_in_pages(place: Place) {
    let store = place.open().await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    let all = [(&Owner::Shared, "a"), (&Owner::Shared, "b/c"), (&owner, "a"), (&owner, "ü")];
    for (owner, name) in all {
        store.put_policy(owner, name, &json!({ "text": "ü and \u{0}" }), None).await.unwrap();
    }
    store.put_policy(&owner, "gone", &json!({}), None).await.unwrap();
    store.delete_policy(&owner, "gone").await.unwrap();
    let mut found = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = Page { after: after.as_deref(), rows_max: 3 };
        let listing = store.policies(&page).await.unwrap();
        assert!(listing.items.iter().all(|policy| policy.body["text"] == "ü and \u{0}"));
        found.extend(listing.items.into_iter().map(|policy| (policy.owner, policy.name)));
        after = listing.next;
        if after.is_none() {
            break;
        }
    }
    let expected = all.map(|(owner, name)| (owner.clone(), name.to_owned()));
    assert_eq!(found, expected);
    assert_eq!(store.policies(&Page::FIRST).await.unwrap().items.len(), 4);
}
