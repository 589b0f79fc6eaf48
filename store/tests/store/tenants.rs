//! Tenants.

use std::num::NonZeroU32;

use pleach_store::{Page, Quotas, StoreError, TenantId, TenantSettings};

use crate::{on_both, place::Place};

on_both!(
    settings_come_back_from_the_next_process,
    names_are_unique,
    pages_have_every_row_once,
    who_is_unknown_is_named,
);

async fn settings_come_back_from_the_next_process(place: Place) {
    let store = place.open().await;
    let all = Quotas {
        requests_per_minute: Some(1),
        tokens_per_minute: Some(u64::from(u32::MAX) * 7),
        concurrent_requests: Some(3),
        adapters: Some(4),
        adapter_bytes: Some(5 << 40),
        training_jobs: Some(0),
        queued_requests: Some(7),
        file_bytes: Some(8),
    };
    let settings = TenantSettings {
        name: "Ünal & 'sons'; --".to_owned(),
        weight: NonZeroU32::MAX,
        priority: i32::MIN,
        quotas: all,
        capture: true,
        keep_days: 7,
    };
    let made = store.create_tenant(settings).await.unwrap();
    store.close().await.unwrap();

    let store = place.open().await;
    assert_eq!(store.tenant(&made.id).await.unwrap(), made);
    let mut changed = TenantSettings::named("new");
    changed.quotas.adapters = Some(9);
    store.change_tenant(&made.id, &changed).await.unwrap();
    assert_eq!(store.tenant(&made.id).await.unwrap().settings, changed);
    assert_eq!(store.find_tenant("new").await.unwrap().unwrap().id, made.id);
    assert_eq!(store.find_tenant("Ünal & 'sons'; --").await.unwrap(), None);

    assert_eq!(made.disabled_ms, None);
    store.set_tenant_enabled(&made.id, false).await.unwrap();
    let disabled_ms = store.tenant(&made.id).await.unwrap().disabled_ms;
    assert!(disabled_ms >= Some(made.created_ms));
    store.set_tenant_enabled(&made.id, false).await.unwrap();
    assert_eq!(store.tenant(&made.id).await.unwrap().disabled_ms, disabled_ms);
    store.set_tenant_enabled(&made.id, true).await.unwrap();
    assert_eq!(store.tenant(&made.id).await.unwrap().disabled_ms, None);
}

async fn names_are_unique(place: Place) {
    let store = place.open().await;
    let one = store.create_tenant(TenantSettings::named("one")).await.unwrap();
    let two = store.create_tenant(TenantSettings::named("two")).await.unwrap();
    for taken in ["one", "shared"] {
        let again = store.create_tenant(TenantSettings::named(taken)).await.unwrap_err();
        assert!(matches!(again, StoreError::TenantNameTaken { name } if name == taken));
    }
    let renamed = store.change_tenant(&two.id, &one.settings).await.unwrap_err();
    assert!(matches!(renamed, StoreError::TenantNameTaken { name } if name == "one"));
    for bad in ["", "a\nb", &"a".repeat(257)] {
        let error = store.create_tenant(TenantSettings::named(bad)).await.unwrap_err();
        assert!(matches!(error, StoreError::InvalidText { .. }), "{error}");
    }
    assert_eq!(store.find_tenant("shared").await.unwrap(), None);
}

async fn pages_have_every_row_once(place: Place) {
    let store = place.open().await;
    let mut made = Vec::new();
    for n in 0..23 {
        made.push(store.create_tenant(TenantSettings::named(n.to_string())).await.unwrap());
    }
    made.sort_unstable_by(|one, two| one.id.cmp(&two.id));
    for rows_max in [0, 1, 7, 22, 23, 24, u32::MAX] {
        let (mut found, mut next) = (Vec::new(), None);
        loop {
            let page = Page { after: next.as_deref(), rows_max };
            let listing = store.tenants(&page).await.unwrap();
            assert!(listing.items.len() <= rows_max.max(1) as usize);
            found.extend(listing.items);
            next = listing.next;
            if next.is_none() {
                break;
            }
        }
        assert_eq!(found, made, "{rows_max} rows a page");
    }
}

async fn who_is_unknown_is_named(place: Place) {
    let store = place.open().await;
    let nobody = TenantId::parse("ten_0123456789abcdef").unwrap();
    let errors = [
        store.tenant(&nobody).await.unwrap_err(),
        store.change_tenant(&nobody, &TenantSettings::named("a")).await.unwrap_err(),
        store.set_tenant_enabled(&nobody, true).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.to_string(), "tenant ten_0123456789abcdef does not exist");
    }
    for bad in ["", "shared", "ten_", "ten_0123456789ABCDEF", "0123456789abcdef"] {
        assert_eq!(TenantId::parse(bad), None, "{bad}");
    }
}
