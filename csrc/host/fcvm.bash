# SPDX-License-Identifier: MIT
# bash completion for fcvm(1). Verbs and options come from the program itself.

# Offers words for the current one.
_fcvm_offer() {
	mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -W "$1" -- "$cur")
}

_fcvm_files() {
	compopt -o filenames 2>/dev/null
	mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$cur")
}

_fcvm_folders() {
	compopt -o filenames -o nospace 2>/dev/null
	mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -d "$@" -- "$cur")
}

# HOST:GUEST[:OPTION,...]: a folder here, a place in the guest, options. $cur is what follows its last colon or "=".
_fcvm_volume() {
	local typed=${COMP_LINE:0:COMP_POINT} colons last before words=
	typed=${typed##*[[:space:]]}
	typed=${typed#--volume=}
	colons=${typed//[^:]/}
	case ${#colons} in
	0) _fcvm_folders ;;
	1) ;;
	*)
		last=${typed##*[:,=]}
		before=${cur%"$last"}
		case ${typed##*[:,]} in
		locks=*) words="host guest" ;;
		*=*) ;;
		*) words="ro rw devices locks= readers= timeout= uid_map= gid_map=" ;;
		esac
		compopt -o nospace 2>/dev/null
		cur=$last
		_fcvm_offer "$words"
		COMPREPLY=("${COMPREPLY[@]/#/$before}")
		;;
	esac
}

_fcvm_vms() {
	_fcvm_offer "$("$program" ls --quiet 2>/dev/null)"
}

# The value of option $1.
_fcvm_value() {
	case $1 in
	--image | -i) _fcvm_offer "$("$program" image ls --quiet 2>/dev/null)" ;;
	--snapshot) _fcvm_offer "$("$program" snapshot ls --quiet 2>/dev/null)" ;;
	--accel) _fcvm_offer "kvm tcg" ;;
	--driver) _fcvm_offer "firecracker qemu" ;;
	--node) _fcvm_vms ;;
	--root) _fcvm_folders ;;
	--volume | -v)
		if [[ $verb == trace ]]; then
			_fcvm_offer "$("$program" volumes --quiet 2>/dev/null)"
		else
			_fcvm_volume
		fi
		;;
	--memory | -m) _fcvm_offer "256M 512M 1G 2G 4G" ;;
	--env | -e) mapfile -t COMPREPLY < <(compgen -v -- "$cur") ;;
	esac
}

# Operand $2 (from 1) of verb $1.
_fcvm_operand() {
	case $1 in
	script)
		if (($2 == 1)); then
			_fcvm_offer "$("$program" script --list --quiet 2>/dev/null)"
		fi
		_fcvm_files
		;;
	exec | logs | volumes | trace)
		if (($2 == 1)); then
			_fcvm_vms
		fi
		;;
	kill) _fcvm_vms ;;
	cp)
		if [[ $cur != */* && $cur != *:* ]]; then
			compopt -o nospace 2>/dev/null
			_fcvm_offer "$("$program" ls --quiet 2>/dev/null | sed 's/$/:/')"
		fi
		_fcvm_files
		;;
	"snapshot rm" | "snapshot inspect") _fcvm_offer "$("$program" snapshot ls --quiet 2>/dev/null)" ;;
	"image rm") _fcvm_offer "$("$program" image ls --quiet 2>/dev/null)" ;;
	"image build") _fcvm_offer "mini" ;;
	esac
}

_fcvm() {
	local program=${COMP_WORDS[0]} cur=${COMP_WORDS[COMP_CWORD]} verb=${COMP_WORDS[1]} first=2
	local i word options operands=0 previous='' valued=''

	COMPREPLY=()
	if ((COMP_CWORD == 1)); then
		_fcvm_offer "$("$program" --complete) --help --version"
		return
	fi
	case $verb in
	snapshot | image)
		if ((COMP_CWORD == 2)); then
			_fcvm_offer "$("$program" --complete "$verb")"
			return
		fi
		verb="$verb ${COMP_WORDS[2]}"
		first=3
		;;
	esac
	# shellcheck disable=SC2086 # a verb of two words is two arguments
	options=$("$program" --complete $verb 2>/dev/null)
	for ((i = first; i < COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		if [[ $word == [:=] ]]; then
			previous=${previous:-$valued} # a value that bash has split
			continue
		fi
		valued=$previous
		if [[ -n $previous ]]; then
			previous=
		elif [[ $word == -- ]]; then
			return # a program of the guest follows
		elif [[ $word == --* ]] && grep -qxF -e "$word=" <<<"$options"; then
			previous=$word
		elif [[ $word == -[mcineuwv] ]]; then
			previous=$word
		elif [[ $word != -* ]]; then
			((operands++))
		fi
	done
	if [[ $cur == [:=] ]]; then
		previous=${previous:-$valued}
		cur=
	fi
	if [[ -n $previous ]]; then
		_fcvm_value "$previous"
	elif [[ $cur == -* ]]; then
		_fcvm_offer "${options//=/}"
	else
		_fcvm_operand "$verb" $((operands + 1))
	fi
}

complete -F _fcvm fcvm
