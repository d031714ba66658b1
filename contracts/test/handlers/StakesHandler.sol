// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IStakeRegistry} from "../../src/interfaces/IStakeRegistry.sol";
import {Keys} from "../utils/Keys.sol";
import {IOctoA} from "../utils/Shipped.sol";

/// @title Plays stakers, reporters and liars at random, and keeps books of its own
contract StakesHandler is Keys {
    uint256 private constant STAKERS = 3;
    uint256 private constant SIGNERS = 5;
    address public constant REPORTER = 0x2546BcD3c84621e976D8185a91A922aE77ECEc30;

    IOctoA private immutable octoA;
    IStakeRegistry private immutable registry;
    mapping(address staker => uint256) public paidIn;
    mapping(address staker => uint256) public paidOut;
    mapping(address staker => uint256) public lost; // to slashes, as the reporter and the burn show
    mapping(address staker => uint256) private lastUnstake;
    uint256 public gifts;
    uint256 public slashes;
    uint256 private faults;

    constructor(IOctoA octoA_, IStakeRegistry registry_) {
        octoA = octoA_;
        registry = registry_;
        for (uint256 i = 0; i < STAKERS; i++) {
            vm.prank(staker(i));
            octoA_.approve(address(registry_), type(uint256).max);
        }
    }

    function staker(uint256 i) public pure returns (address) {
        return vm.addr(100 + i % STAKERS);
    }

    function signerKey(uint256 i) private pure returns (uint256) {
        return 200 + i % SIGNERS;
    }

    // ---- honest moves --------------------------------------------------------------------------------------------

    function stake(uint256 who, uint256 tier, uint256 amount) external {
        IStakeRegistry.Tier wanted = IStakeRegistry.Tier(bound(tier, 1, 3));
        uint256 minimum = registry.minimumOf(wanted);
        uint256 bonded = registry.stakeOf(staker(who)).bonded;
        uint256 least = bonded >= minimum ? 1 : minimum - bonded;
        amount = bound(amount, least, least + 1_000 ether);
        if (octoA.balanceOf(staker(who)) < amount) return;
        paidIn[staker(who)] += amount;
        vm.prank(staker(who));
        registry.stake(wanted, amount);
    }

    function topUp(uint256 who, uint256 amount) external {
        if (registry.stakeOf(staker(who)).tier == IStakeRegistry.Tier.None) return;
        amount = bound(amount, 1, 1_000 ether);
        if (octoA.balanceOf(staker(who)) < amount) return;
        paidIn[staker(who)] += amount;
        vm.prank(staker(who));
        registry.topUp(amount);
    }

    function changeTier(uint256 who, uint256 tier) external {
        IStakeRegistry.Tier wanted = IStakeRegistry.Tier(bound(tier, 1, 3));
        if (registry.stakeOf(staker(who)).bonded < registry.minimumOf(wanted)) return;
        vm.prank(staker(who));
        registry.changeTier(wanted);
    }

    function bind(uint256 who, uint256 which) external {
        address signer = vm.addr(signerKey(which));
        IStakeRegistry.SignerRecord memory record = registry.signerRecord(signer);
        bool answers = record.slashableUntil == 0 || vm.getBlockTimestamp() < record.slashableUntil;
        if (record.staker != address(0) && record.staker != staker(who) && answers) return;
        bytes32 peer = keccak256(abi.encode("peer", which));
        uint64 nonce = registry.identityOf(staker(who)).nonce;
        (bytes32 r, bytes32 vs) = compact(signerKey(which), registry.bindingDigest(staker(who), signer, peer, nonce));
        vm.prank(staker(who));
        registry.bind(signer, peer, IStakeRegistry.Signature(r, vs));
    }

    function unstake(uint256 who, uint256 amount, bool all) external {
        IStakeRegistry.Stake memory held = registry.stakeOf(staker(who));
        if (held.bonded == 0) return;
        uint256 minimum = held.tier == IStakeRegistry.Tier.None ? 0 : registry.minimumOf(held.tier);
        if (all || held.bonded <= minimum) amount = held.bonded;
        else amount = bound(amount, 1, held.bonded - minimum);
        lastUnstake[staker(who)] = vm.getBlockTimestamp();
        vm.prank(staker(who));
        registry.unstake(amount);
    }

    function wait_(uint256 seconds_) external {
        vm.warp(vm.getBlockTimestamp() + bound(seconds_, 1, 4 days));
    }

    function gift(uint256 amount) external {
        amount = bound(amount, 1, 1 ether);
        gifts += amount;
        octoA.transfer(address(registry), amount);
    }

    /// @dev Tried at any time: what comes out must have waited.
    function withdraw(uint256 who) external {
        uint256 before = octoA.balanceOf(staker(who));
        vm.prank(staker(who));
        try registry.withdraw() {
            vm.assertTrue(
                vm.getBlockTimestamp() >= lastUnstake[staker(who)] + 7 days, "nothing leaves before seven days"
            );
        } catch {}
        paidOut[staker(who)] += octoA.balanceOf(staker(who)) - before;
    }

    // ---- slashing ------------------------------------------------------------------------------------------------

    /// @dev Two different receipts for a step that was not punished yet; or an old fault again.
    function slash(uint256 which, uint256 fault) external {
        uint256 task = fault % 4 == 0 && faults != 0 ? fault % faults : faults++;
        report(which, which, receipt(task, "one"), receipt(task, "other"), true);
    }

    /// @dev No contradiction: one receipt twice, two steps, or two signers.
    function slander(uint256 which, uint256 how) external {
        uint256 task = faults++;
        IStakeRegistry.Receipt memory one = receipt(task, "one");
        IStakeRegistry.Receipt memory other = receipt(task, how % 3 == 0 ? bytes32("one") : bytes32("other"));
        if (how % 3 == 1) other.seq += 1;
        report(which, how % 3 == 2 ? which % SIGNERS + 1 : which, one, other, false);
    }

    function report(
        uint256 first,
        uint256 second,
        IStakeRegistry.Receipt memory one,
        IStakeRegistry.Receipt memory other,
        bool guilty
    ) private {
        address answers = registry.signerRecord(vm.addr(signerKey(first))).staker;
        uint256 reported = octoA.balanceOf(REPORTER);
        uint256 supply = octoA.totalSupply();
        IStakeRegistry.Signature memory byFirst = sign(signerKey(first), one);
        IStakeRegistry.Signature memory bySecond = sign(signerKey(second), other);
        vm.prank(REPORTER);
        try registry.slashEquivocation(one, byFirst, other, bySecond) {
            vm.assertTrue(guilty, "only equivocation is slashed");
            slashes++;
        } catch {}
        uint256 reward = octoA.balanceOf(REPORTER) - reported;
        uint256 burned = supply - octoA.totalSupply();
        lost[answers] += reward + burned;
        vm.assertTrue(reward <= burned, "reporting oneself does not pay");
    }

    function sign(uint256 key, IStakeRegistry.Receipt memory said)
        private
        view
        returns (IStakeRegistry.Signature memory)
    {
        (bytes32 r, bytes32 vs) = compact(key, registry.receiptDigest(said));
        return IStakeRegistry.Signature(r, vs);
    }

    function receipt(uint256 task, bytes32 body) private pure returns (IStakeRegistry.Receipt memory said) {
        said.body = body;
        said.task = keccak256(abi.encode(task));
        said.seq = 1;
    }
}
