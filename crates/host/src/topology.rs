//! Who else is in a guest's deployment, as the guest is told: from the goal state of the network.

use mayfly_model::{EndpointGoal, NetworkGoal, RouteGoal, VipGoal};
use mayfly_wire::{Member, MemberEndpoint};

/// The instances of a deployment, in order.
pub(crate) fn members(network: &NetworkGoal, deployment_id: &str) -> Vec<Member> {
    let routes = network.routes.iter().filter(|route| route.deployment_id == deployment_id);
    let mut members: Vec<Member> = routes.map(|route| member(network, route)).collect();
    members.sort_by(|one, other| (&one.role, one.index, one.dip).cmp(&(&other.role, other.index, other.dip)));
    members
}

fn member(network: &NetworkGoal, route: &RouteGoal) -> Member {
    let all = network.vips.iter().flat_map(|vip| vip.endpoints.iter().map(move |endpoint| (vip, endpoint)));
    let own = all.filter(|(_, endpoint)| endpoint.backends.iter().any(|backend| backend.dip == route.dip));
    Member {
        role: route.role.clone(),
        index: route.index,
        update_domain: route.update_domain,
        dip: route.dip,
        endpoints: own.map(|(vip, endpoint)| public(vip, endpoint)).collect(),
    }
}

fn public(vip: &VipGoal, endpoint: &EndpointGoal) -> MemberEndpoint {
    let name = endpoint.name.rsplit_once('/').map_or(endpoint.name.as_str(), |(_, name)| name);
    MemberEndpoint {
        name: name.to_owned(),
        udp: endpoint.udp,
        local_port: endpoint.local_port,
        vip: vip.vip,
        port: endpoint.port,
    }
}
