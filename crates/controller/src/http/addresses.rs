//! Reserved public addresses.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use mayfly_api::{AddressView, ApiError, ErrorCode};
use mayfly_fabric::{Command, Core, State as Records};
use mayfly_model::{Reservation, ReservedName};

use super::Shared;
use super::error::Failure;
use super::events::rfc3339;

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Result<Json<Vec<AddressView>>, Failure> {
    let all = |core: &Core| core.state().reservations().values().map(|one| view(core.state(), one)).collect();
    Ok(Json(shared.driver.read(all).await?))
}

fn view(state: &Records, reservation: &Reservation) -> AddressView {
    let user = state.deployments().values().find(|one| one.vip == reservation.address);
    AddressView {
        name: reservation.name.to_string(),
        address: reservation.address,
        reserved: rfc3339(reservation.reserved),
        used_by: user.map(|one| one.key.to_string()),
    }
}

pub(super) async fn reserve(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Json<AddressView>, Failure> {
    let name = ReservedName::new(name)?;
    shared.command(&headers, Command::ReserveAddress(name.clone())).await?;
    let one = |core: &Core| core.state().reservations().get(&name).map(|one| view(core.state(), one));
    let view = shared.driver.read(one).await?;
    Ok(Json(view.ok_or_else(|| ApiError::new(ErrorCode::Conflict, "it was released at this moment"))?))
}

pub(super) async fn release(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<(), Failure> {
    shared.command(&headers, Command::ReleaseAddress(ReservedName::new(name)?)).await
}
